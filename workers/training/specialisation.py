"""How far a trained model's experts went their own ways by domain: the mutual information of expert and domain, beside what chance would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.moe import Decoder
from workers.training.batches import pack
from workers.training.examples import Example

MOST_DOMAINS = 40
EXAMPLES_A_DOMAIN = 16
EXAMPLES_A_BATCH = 64
SHUFFLES = 200
MODALITIES = ("picture tokens", "text tokens")  # columns beside the domains, where there are pictures


@dataclass(frozen=True)
class Choices:
    """`counts`: (layers, examples, experts) int64, the text tokens of each example that each expert saw; `domain`: (examples,) int64, into
    `domains`; `patches`: (layers, experts) int64, the tokens of all examples' pictures, None where there are none."""

    domains: list[str]
    domain: np.ndarray
    counts: np.ndarray
    patches: np.ndarray | None = None


def specialisation(model: Decoder, examples: Sequence[Example]) -> dict[str, Any]:
    """For a job's result: `domains`, `expert_domain` and `specialisation`; empty for a dense model and where no example has a domain."""
    choices = choices_of(model, examples)
    if choices is None:
        return {"domains": [], "expert_domain": [], "specialisation": None}
    found = information(choices)
    if choices.patches is None:
        return {"domains": choices.domains, "expert_domain": expert_shares(choices), "specialisation": found}
    found["modality"] = modality_information(choices.counts.sum(1), choices.patches)
    return {"domains": [*choices.domains, *MODALITIES], "expert_domain": expert_shares(choices), "specialisation": found}


def expert_shares(choices: Choices) -> list[list[list[float]]]:
    """Layers × experts × domains, then MODALITIES where there are pictures; for each layer and column the shares of the experts sum to 1."""
    counts = _by_domain(choices.counts, choices.domain, len(choices.domains))
    if choices.patches is not None:
        counts = np.concatenate([counts, choices.patches[:, None], choices.counts.sum(1)[:, None]], axis=1)
    shares = counts / counts.sum(-1, keepdims=True).clip(min=1)
    return shares.transpose(0, 2, 1).round(4).tolist()


def information(choices: Choices, shuffles: int = SHUFFLES, seed: int = 0) -> dict[str, Any]:
    """In bits, for each layer: I(expert; domain), and the same after the domains were dealt to the examples anew: `chance` on average, `chance_high`
    in one of twenty shuffles. `share`: the part of H(domain) that the expert tells beyond chance, (I − chance) / (H − chance), as in the adjusted
    mutual information (Vinh et al. 2010).

    Whole examples are dealt, not tokens: the tokens of one sentence go together, and an estimate from few sentences is above zero for that alone.
    """
    number = len(choices.domains)
    counts = _by_domain(choices.counts, choices.domain, number)
    bits = mutual_information(counts)
    generator = np.random.default_rng(seed)
    dealt = [mutual_information(_by_domain(choices.counts, generator.permutation(choices.domain), number)) for _ in range(shuffles)]
    chance, high = np.mean(dealt, axis=0), np.quantile(dealt, 0.95, axis=0)
    entropy = entropy_bits(counts[0].sum(1))
    layers = [
        {"bits": float(i), "chance": float(c), "chance_high": float(h), "share": float((i - c) / (entropy - c)) if entropy > c else 0.0}
        for i, c, h in zip(bits, chance, high, strict=True)
    ]
    return {"domain_entropy": entropy, "examples": len(choices.domain), "shuffles": shuffles, "layers": layers}


def modality_information(text: np.ndarray, patches: np.ndarray) -> dict[str, Any]:
    """I(expert; modality) in bits for each layer, of at most `entropy`. `text`, `patches`: (layers, experts), tokens."""
    both = np.stack([text, patches], axis=1)
    return {"entropy": entropy_bits(both[0].sum(1)), "layers": [float(bits) for bits in mutual_information(both)]}


def mutual_information(counts: np.ndarray) -> np.ndarray:
    """I(row; column) in bits of tables of counts, (…, rows, columns) → (…); 0 for an empty table. Cover and Thomas 2006, eq. 2.28."""
    joint = counts / counts.sum((-2, -1), keepdims=True).clip(min=1)
    expected = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.divide(joint, expected, out=np.ones_like(joint), where=joint > 0)
    return (joint * np.log2(ratio)).sum((-2, -1))


def entropy_bits(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@torch.inference_mode()
def choices_of(model: Decoder, examples: Sequence[Example]) -> Choices | None:
    """Where some examples of each domain go, of the domains that have most. None for a dense model and where no example has a domain."""
    routers = model.routers()
    by_domain: dict[str, list[Example]] = {}
    for example in examples:
        by_domain.setdefault(example.domain, []).append(example)
    largest = sorted((d for d in by_domain if d), key=lambda d: (-len(by_domain[d]), d))[:MOST_DOMAINS]
    domains = sorted(largest)
    if not routers or not domains:
        return None
    # By lot, not evenly over the file: so the domains would get equal parts of each kind and language, and be more alike than chance makes them.
    generator = np.random.default_rng(0)
    chosen = [
        (number, by_domain[domain][i])
        for number, domain in enumerate(domains)
        for i in np.sort(generator.permutation(len(by_domain[domain]))[:EXAMPLES_A_DOMAIN])
    ]
    seen: list[Tensor] = []
    hooks = [router.register_forward_hook(lambda module, given, out: seen.append(out[0])) for router in routers]
    experts = model.config.n_experts
    parts: list[Tensor] = []
    patches = torch.zeros(len(routers), experts, dtype=torch.int64)
    try:
        for start in range(0, len(chosen), EXAMPLES_A_BATCH):
            part = [example for _, example in chosen[start : start + EXAMPLES_A_BATCH]]
            batch = pack(part)
            seen.clear()
            model(batch.tokens, **batch.inputs | {"select": batch.select[:1]})
            text, owner = batch.valid.reshape(-1).clone(), batch.example.reshape(-1, 1)
            if batch.image_at is not None:
                text[batch.image_at] = False
                patches += torch.stack([torch.bincount(ids[batch.image_at].reshape(-1), minlength=experts) for ids in seen])
            pairs = [(owner * experts + ids)[text].reshape(-1) for ids in seen]
            parts.append(torch.stack([torch.bincount(p, minlength=len(part) * experts).view(len(part), experts) for p in pairs]))
    finally:
        for hook in hooks:
            hook.remove()
    numbers, counts = np.array([number for number, _ in chosen]), torch.cat(parts, dim=1).numpy()
    return Choices(domains, numbers, counts, patches.numpy() if patches.any() else None)


def _by_domain(counts: np.ndarray, domain: np.ndarray, number: int) -> np.ndarray:
    """(layers, examples, experts) → (layers, domains, experts)."""
    member = (domain[None, :] == np.arange(number)[:, None]).astype(np.float64)  # domains, examples
    return member @ counts
