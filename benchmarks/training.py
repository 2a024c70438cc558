"""Training tokens a second: ours beside transformers MoEs of the same configuration, and beside the usual loop over experts.

    python -m benchmarks.training [--quick]

The demonstration's entries (question → answer, loss on the answer), 32 examples a step, all cores. Every row takes the same steps on
the same examples from the same weights, in turns, so that other work on the machine hits all alike; the figures are medians over the
turns, the ratios those of each turn. All step by PyTorch's fused AdamW; the row with Muon, which our jobs use, stands apart.

The peer of the same weights is Mixtral, whose formula is ours to the last term; its loss on the first batch is checked against ours.
Qwen3-MoE adds norms of queries and keys. They get the examples as their trainers give them, padded to the longest, and also in our
packed rows with a mask for each, which no usual trainer does; experts by their loop and by `grouped_mm`, attention by SDPA. Tokens are
the examples' own, padding not counted. All rows run with the allocator as our jobs set it, which spares the peers more page faults than us.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from workers.moe import PRESETS, ChatTokenizer, Decoder, ModelConfig
from workers.training import Example, Precision, Sampler, encode, pack, sampling_weights, texts_of
from workers.training.memory import keep_freed_memory
from workers.training.muon import Muon, muon_groups

DEMO = Path(__file__).resolve().parents[1] / "demo" / "knowledge"
BATCH = 32
AUX = 0.01
CPU = torch.device("cpu")
Losses = Callable[[list[Example]], Tensor]
Step = Callable[[list[Example]], None]


class LoopedExperts(nn.Module):
    """The usual loop: for each expert, find its tokens, multiply, add back."""

    def __init__(self, gate_up: nn.Parameter, down: nn.Parameter):
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(self.gate_up.shape[0]):
            token, slot = torch.where(ids == expert)
            gate, up = (x[token] @ self.gate_up[expert]).chunk(2, dim=-1)
            out.index_add_(0, token, ((F.silu(gate) * up) @ self.down[expert] * weights[token, slot, None]).to(out.dtype))
        return out


def our_model(config: ModelConfig) -> Decoder:
    model = Decoder(config).train()
    model.initialise(torch.Generator().manual_seed(0))
    return model


def with_looped_experts(model: Decoder) -> Decoder:
    for block in model.blocks:
        block.feed_forward.experts = LoopedExperts(block.feed_forward.experts.gate_up, block.feed_forward.experts.down)
    return model


def our_losses(model: Decoder, aux: float = AUX) -> Losses:
    def losses(examples: list[Example]) -> Tensor:
        batch = pack(examples)
        logits = model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)
        return F.cross_entropy(logits.float(), batch.targets) + aux * sum(r.aux_loss for r in model.routers())

    return losses


def their_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.d_model, "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim, "num_experts_per_tok": config.top_k, "tie_word_embeddings": True,
        "output_router_logits": True, "router_aux_loss_coef": AUX, "max_position_embeddings": config.max_seq_len, "use_cache": False,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "attn_implementation": "sdpa",
    }  # fmt: skip


def mixtral(config: ModelConfig, experts: str) -> nn.Module:
    """With our weights: our router's bias begins at zero, and Mixtral has none."""
    wanted = MixtralConfig(
        **their_config(config),
        intermediate_size=config.d_expert,
        num_local_experts=config.n_experts,
        sliding_window=None,
        experts_implementation=experts,
    )
    model = MixtralForCausalLM(wanted).train()
    ours = our_model(config).state_dict()
    heads, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    state = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "lm_head.weight": ours["embedding.weight"],
        "model.norm.weight": ours["norm.weight"],
    }
    for layer in range(config.n_layers):
        a, b = f"blocks.{layer}.", f"model.layers.{layer}."
        q, k, v = ours[f"{a}attention.qkv.weight"].split([heads, kv, kv])
        state |= {
            f"{b}self_attn.q_proj.weight": q, f"{b}self_attn.k_proj.weight": k, f"{b}self_attn.v_proj.weight": v,
            f"{b}self_attn.o_proj.weight": ours[f"{a}attention.out.weight"], f"{b}input_layernorm.weight": ours[f"{a}attention_norm.weight"],
            f"{b}post_attention_layernorm.weight": ours[f"{a}feed_forward_norm.weight"], f"{b}mlp.gate.weight": ours[f"{a}feed_forward.router.weight"],
            f"{b}mlp.experts.gate_up_proj": ours[f"{a}feed_forward.experts.gate_up"].mT, f"{b}mlp.experts.down_proj": ours[f"{a}feed_forward.experts.down"].mT,
        }  # fmt: skip
    model.load_state_dict(state, strict=True)
    return model


def qwen(config: ModelConfig, experts: str) -> nn.Module:
    wanted = Qwen3MoeConfig(
        **their_config(config),
        moe_intermediate_size=config.d_expert,
        num_experts=config.n_experts,
        norm_topk_prob=True,
        experts_implementation=experts,
    )
    return Qwen3MoeForCausalLM(wanted).train()


def padded(examples: list[Example]) -> dict[str, Tensor]:
    """A batch as their trainers make it."""
    length = max(len(e) for e in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        given = torch.from_numpy(example.ids).long()
        ids[row, : len(given)] = given
        mask[row, : len(given)] = 1
        labels[row, : len(given)] = given.masked_fill(~torch.from_numpy(example.learnt), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def packed(examples: list[Example]) -> dict[str, Tensor]:
    """Our rows: positions and a mask of four dimensions keep the examples apart."""
    batch = pack(examples)
    labels = torch.full_like(batch.tokens, -100).view(-1)
    learnt = batch.targets >= 0
    labels[batch.select[learnt] + 1] = batch.targets[learnt]
    return {"input_ids": batch.tokens, "position_ids": batch.positions, "attention_mask": batch.mask, "labels": labels.view_as(batch.tokens)}


def their_losses(model: nn.Module, batch_of: Callable[[list[Example]], dict[str, Tensor]], **options: Any) -> Losses:
    return lambda examples: model(**batch_of(examples), **options).loss


def trainer(model: nn.Module, precision: Precision, losses: Losses, muon: bool = False) -> Step:
    optimizer: torch.optim.Optimizer
    if muon:
        optimizer = Muon(muon_groups(model.named_parameters(), lr=1e-3, matrix_lr=1e-3), lr=1e-3)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(examples: list[Example]) -> None:
        with precision.autocast():
            loss = losses(examples)
        precision.backward(loss)
        precision.step(optimizer, model, 1.0)
        optimizer.zero_grad()

    return step


def check_same(config: ModelConfig, examples: list[Example]) -> None:
    """The peer computes what we compute: without the balance losses, whose formulas differ, the losses agree."""
    with torch.no_grad():
        ours = float(our_losses(our_model(config), aux=0.0)(examples))
        for batch_of in (padded, packed):
            theirs = float(their_losses(mixtral(config, "eager"), batch_of, output_router_logits=False)(examples))
            if abs(ours - theirs) > 1e-4:
                raise SystemExit(f"Mixtral with our weights has a loss of {theirs:.6f} on {batch_of.__name__} rows, ours is {ours:.6f}")


def trainers(config: ModelConfig, precision_name: str) -> dict[str, Step]:
    def theirs(model: nn.Module) -> Step:
        return trainer(model, Precision(precision_name, CPU), their_losses(model, padded))

    def theirs_packed(model: nn.Module) -> Step:  # their balance loss knows masks of two dimensions only, so they go without it
        return trainer(model, Precision(precision_name, CPU), their_losses(model, packed, output_router_logits=False))

    def ours(model: Decoder, muon: bool = False) -> Step:
        return trainer(model, Precision(precision_name, CPU), our_losses(model), muon)

    return {
        "ours": ours(our_model(config)),
        "ours, the usual loop over experts in it": ours(with_looped_experts(our_model(config))),
        "transformers Mixtral (same weights), loop over experts": theirs(mixtral(config, "eager")),
        "transformers Mixtral (same weights), `grouped_mm`": theirs(mixtral(config, "grouped_mm")),
        "transformers Mixtral (same weights), `grouped_mm`, our packed rows": theirs_packed(mixtral(config, "grouped_mm")),
        "transformers Qwen3-MoE, `grouped_mm`": theirs(qwen(config, "grouped_mm")),
        "ours by Muon": ours(our_model(config), muon=True),
    }


def speeds(rows: dict[str, Step], batches: list[list[Example]], turns: int) -> dict[str, list[float]]:
    """Tokens a second of each row in each turn. All take the same batches; the first turn, untimed, warms up."""
    tokens = sum(len(e) for batch in batches for e in batch)
    found: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns + 1):
        for name, step in rows.items():
            began = time.perf_counter()
            for batch in batches:
                step(batch)
            if turn:
                found[name].append(tokens / (time.perf_counter() - began))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short turn of each: shows that it runs, not how fast")
    quick = parser.parse_args().quick or bool(os.environ.get("BENCH_QUICK"))
    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    entries = [json.loads(line) for path in sorted(DEMO.glob("*.jsonl")) for line in path.read_text().splitlines()]
    records: list[dict[str, Any]] = [{"question": f"What is {e['title']}?", "answer": e["text"]} for e in entries]
    print(f"PyTorch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads, {BATCH} examples a step")
    for preset in ("nano", "small"):
        tokenizer = ChatTokenizer.train(texts_of(records), PRESETS[preset].vocab_size)
        examples, _ = encode(records, tokenizer, 256)
        config = PRESETS[preset].with_(vocab_size=tokenizer.vocab_size)
        sampler = Sampler(sampling_weights(examples, {}), seed=0)
        batches = [[examples[i] for i in sampler.take(BATCH)] for _ in range(2 if quick else 12)]
        check_same(config, batches[0])
        for precision in ("bf16", "fp32"):
            found = speeds(trainers(config, precision), batches, 1 if quick else 5)
            print(f"\n| {preset}, {precision.upper()} | tokens/s | ours is … times as fast |\n|---|---|---|")
            for name, rates in found.items():
                ratio = median(ours / rate for ours, rate in zip(found["ours"], rates, strict=True))
                print(f"| {name} | {median(rates):,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
