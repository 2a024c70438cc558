"""Training steps a second: ours beside a transformers MoE of the same shape, and beside the usual loop over experts.

    python -m benchmarks.training [SECONDS]

The `nano` preset learns the demonstration's entries (question → answer, loss on the answer), 32 examples a step, AdamW, all cores,
in turns so that other work on the machine hits all alike. The peers get the same examples padded to the longest, as their
trainers do; ours packs them several to a row. Tokens are the examples' own, padding not counted.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.moe import PRESETS, ChatTokenizer, Decoder, ModelConfig
from workers.training import Example, Precision, Sampler, encode, pack, sampling_weights, texts_of

DEMO = Path(__file__).resolve().parents[1] / "demo" / "knowledge"
BATCH = 32
ROUNDS = 3
CPU = torch.device("cpu")
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


def trainer(model: nn.Module, precision: Precision, losses: Callable[[list[Example]], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(examples: list[Example]) -> None:
        with precision.autocast():
            loss = losses(examples)
        precision.backward(loss)
        precision.step(optimizer, model, 1.0)
        optimizer.zero_grad()

    return step


def ours(config: ModelConfig, precision: str, looped: bool = False) -> Step:
    model = Decoder(config).train()
    model.initialise(torch.Generator().manual_seed(0))
    if looped:
        for block in model.blocks:
            block.feed_forward.experts = LoopedExperts(block.feed_forward.experts.gate_up, block.feed_forward.experts.down)

    def losses(examples: list[Example]) -> Tensor:
        batch = pack(examples)
        logits = model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)
        return F.cross_entropy(logits.float(), batch.targets) + 0.01 * sum(r.aux_loss for r in model.routers())

    return trainer(model, Precision(precision, CPU), losses)


def theirs(config: ModelConfig, precision: str) -> Step:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads, head_dim=config.head_dim, moe_intermediate_size=config.d_expert, num_experts=config.n_experts,
            num_local_experts=config.n_experts, num_experts_per_tok=config.top_k, norm_topk_prob=True, tie_word_embeddings=True,
            output_router_logits=True, router_aux_loss_coef=0.01, max_position_embeddings=config.max_seq_len, use_cache=False,
        )
    ).train()  # fmt: skip

    def losses(examples: list[Example]) -> Tensor:
        length = max(len(e) for e in examples)
        ids = torch.zeros(len(examples), length, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, example in enumerate(examples):
            ids[row, : len(example)] = torch.from_numpy(example.ids)
            mask[row, : len(example)] = 1
            labels[row, : len(example)][torch.from_numpy(example.learnt)] = ids[row, : len(example)][torch.from_numpy(example.learnt)]
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    return trainer(model, Precision(precision, CPU), losses)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    torch.set_num_threads(os.cpu_count() or 1)
    entries = [json.loads(line) for path in sorted(DEMO.glob("*.jsonl")) for line in path.read_text().splitlines()]
    records: list[dict[str, Any]] = [{"question": f"What is {e['title']}?", "answer": e["text"]} for e in entries]
    tokenizer = ChatTokenizer.train(texts_of(records), 2048)
    examples, _ = encode(records, tokenizer, 256)
    config = PRESETS["nano"].with_(vocab_size=tokenizer.vocab_size)
    rows = {
        "ours, BF16": ours(config, "bf16"), "ours, FP32": ours(config, "fp32"), "ours with the usual loop over experts, BF16": ours(config, "bf16", looped=True),
        "transformers Qwen3-MoE, BF16": theirs(config, "bf16"), "transformers Qwen3-MoE, FP32": theirs(config, "fp32"),
    }  # fmt: skip
    tokens, spent = dict.fromkeys(rows, 0), dict.fromkeys(rows, 0.0)
    samplers = {name: Sampler(sampling_weights(examples, {}), seed=0) for name in rows}
    for turn in range(ROUNDS + 1):
        for name, step in rows.items():
            began = time.perf_counter()
            while time.perf_counter() - began < (1.0 if turn == 0 else seconds / ROUNDS):
                batch = [examples[i] for i in samplers[name].take(BATCH)]
                step(batch)
                tokens[name] += sum(len(e) for e in batch) if turn else 0  # the first turn warms up
            spent[name] += time.perf_counter() - began if turn else 0.0
    best = tokens["ours, BF16"] / spent["ours, BF16"]
    print("| nano, 32 examples a step | tokens/s | ours is … times as fast |\n|---|---|---|")
    for name in rows:
        speed = tokens[name] / spent[name]
        print(f"| {name} | {speed:,.0f} | {best / speed:.2f} |")


if __name__ == "__main__":
    main()
