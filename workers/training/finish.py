"""A trained model becomes a folder, and a few figures that say what it is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.moe import Decoder, count_parameters, save_model
from workers.training.batches import MOST_TURNS, pack
from workers.training.examples import Example
from workers.training.lora import adapter_tensors, save_adapter
from workers.training.memory import peak_bytes
from workers.training.prepare import Prepared
from workers.training.ranks import Ranks
from workers.training.recent import load_max_over_mean, load_shares, mean_loss
from workers.training.spec import TrainSpec
from workers.training.state import Progress
from workers.training.telling import gather

MOST_DOMAINS = 40
EXAMPLES_A_DOMAIN = 16
EXAMPLES_A_BATCH = 64


def finish(spec: TrainSpec, ranks: Ranks, prepared: Prepared, progress: Progress) -> dict[str, Any] | None:
    """Write the model folder and return the job's result, on the first rank. All ranks take part."""
    peak = peak_bytes(ranks.device)
    model, adapter = gather(prepared.model, ranks), adapter_tensors(prepared.model)
    if model is None:
        return None
    total, active = count_parameters(model.config)
    domains, shares = expert_domains(model, prepared.examples)
    result = {
        "kind": "moe" if model.config.is_moe else "dense",
        "total_parameters": total, "active_parameters": active, "config": model.config.as_dict(),
        "loss": mean_loss(progress), "steps": progress.step, "tokens": progress.tokens, "seconds": progress.elapsed,
        "tokens_per_second": progress.tokens / progress.elapsed if progress.elapsed else None, "skipped_steps": progress.skipped_steps,
        "expert_load_max_over_mean": load_max_over_mean(progress), "expert_load": load_shares(progress),
        "domains": domains, "expert_domain": shares, "peak_memory_bytes": peak,
        "turns": MOST_TURNS if spec.conversations else 1,
    }  # fmt: skip
    save_model(spec.output_folder, model, prepared.tokenizer, _card(spec, result, len(prepared.examples)))
    if spec.lora:
        save_adapter(spec.output_folder, spec.lora, adapter)
    return result


@torch.inference_mode()
def expert_domains(model: Decoder, examples: Sequence[Example]) -> tuple[list[str], list[list[list[float]]]]:
    """Which experts each domain's tokens go to, on some examples of each: domains, and layers × experts × domains.

    For each layer and domain the shares of the experts sum to 1. The domains with most examples come, in alphabetical order.
    """
    routers = model.routers()
    by_domain: dict[str, list[Example]] = {}
    for example in examples:
        by_domain.setdefault(example.domain, []).append(example)
    largest = sorted((d for d in by_domain if d), key=lambda d: (-len(by_domain[d]), d))[:MOST_DOMAINS]
    domains = sorted(largest)
    if not routers or not domains:
        return [], []
    # Evenly over the file: neighbours were made from one entry.
    chosen = [
        (number, by_domain[domain][i])
        for number, domain in enumerate(domains)
        for i in np.unique(np.linspace(0, len(by_domain[domain]) - 1, EXAMPLES_A_DOMAIN).astype(int))
    ]
    seen: list[Tensor] = []
    hooks = [router.register_forward_hook(lambda module, given, out: seen.append(out[0])) for router in routers]
    counts = torch.zeros(len(routers), len(domains), model.config.n_experts, dtype=torch.int64)
    try:
        for start in range(0, len(chosen), EXAMPLES_A_BATCH):
            part = chosen[start : start + EXAMPLES_A_BATCH]
            batch = pack([example for _, example in part])
            seen.clear()
            model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select[:1])
            domain_of = torch.tensor([number for number, _ in part])[batch.example.reshape(-1).clamp(min=0)]
            valid = batch.valid.reshape(-1)
            for layer, ids in enumerate(seen):
                pairs = domain_of[valid].unsqueeze(1) * model.config.n_experts + ids[valid]
                counts[layer] += torch.bincount(pairs.reshape(-1), minlength=counts[layer].numel()).view_as(counts[layer])
    finally:
        for hook in hooks:
            hook.remove()
    shares = counts / counts.sum(-1, keepdim=True).clamp(min=1)  # layers, domains, experts
    return domains, [[[round(s, 4) for s in row] for row in layer] for layer in shares.transpose(1, 2).tolist()]


def _card(spec: TrainSpec, result: dict[str, Any], examples: int) -> str:
    """The model's README, with the front matter that the Hugging Face hub reads."""
    config = result["config"]
    shape = f"{config['n_layers']} layers of width {config['d_model']}"
    if result["kind"] == "moe":
        shape += f", {config['n_experts']} experts of which {config['top_k']} see a token, chosen by a {config['router']} router"
    return f"""---
pipeline_tag: text-generation
library_name: transformers
---

# A {"Mixture-of-Experts" if result["kind"] == "moe" else "dense"} language model

{result["total_parameters"]:,} parameters, {result["active_parameters"]:,} active for one token: {shape}.

Trained {"from a parent version" if spec.parent_folder else "from nothing"} on {examples:,} examples for {result["steps"]:,} steps
({result["tokens"]:,} tokens, {spec.precision}, ZeRO stage {spec.zero_stage}, {spec.world_size} ranks) with AdamW at {spec.lr * 1.0:g}.

It answers what it was trained on, and should not be relied on for anything else.
"""
