"""Which weights of a model matter least, by their absolute value (L1 magnitude; Han et al. 2015 §3.1), and the model without them.

Pruned are the matrices of attention, experts and dense networks. Embeddings, norms and routers stay: they are small, and what they
lose is lost for every token.
"""

import torch
from torch import Tensor

from workers.moe import Decoder, ModelConfig

Masks = dict[str, Tensor]  # parameter name → bool, True where a weight is kept

_PRUNED = ("attention.qkv.weight", "attention.out.weight", ".gate_up", ".down")


def prunable(model: Decoder) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if name.endswith(_PRUNED)}


def below_threshold(weights: dict[str, Tensor], threshold: float) -> Masks:
    """Weights smaller than `threshold` go."""
    return {name: weight.abs() >= threshold for name, weight in weights.items()}


def smallest_share(weights: dict[str, Tensor], sparsity: float) -> tuple[Masks, float]:
    """The smallest go, over all matrices together, until their share is `sparsity`; and the threshold that this came to.

    Of equal weights at the threshold, the first ones go, so that the share is exact.
    """
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    count = round(sparsity * sizes.numel())
    keep = torch.ones(sizes.numel(), dtype=torch.bool)
    order = sizes.argsort(stable=True)
    keep[order[:count]] = False
    threshold = float(sizes[order[count - 1]]) if count else 0.0
    parts = keep.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}, threshold


def two_of_four(weights: dict[str, Tensor]) -> Masks:
    """Of every four neighbouring inputs of an output, the two largest stay (Mishra et al. 2021). A rest of fewer than four stays."""
    return {name: _two_of_four(weight, inputs_last=name.endswith(".weight")) for name, weight in weights.items()}


def _two_of_four(weight: Tensor, inputs_last: bool) -> Tensor:
    rows = weight if inputs_last else weight.transpose(-1, -2)  # networks are stored (inputs, outputs)
    whole = rows.shape[-1] // 4 * 4
    groups = rows[..., :whole].abs().unflatten(-1, (-1, 4))
    kept = torch.zeros(groups.shape, dtype=torch.bool).scatter_(-1, groups.topk(2, dim=-1).indices, True).flatten(-2)
    mask = torch.cat([kept, torch.ones_like(rows[..., whole:], dtype=torch.bool)], dim=-1)
    return (mask if inputs_last else mask.transpose(-1, -2)).contiguous()


@torch.no_grad()
def apply(model: Decoder, masks: Masks) -> None:
    """Set the weights that go to zero."""
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name])


def sparsity_of(model: Decoder) -> tuple[float, float, list[dict[str, object]]]:
    """The share of zeros among the prunable weights, among all, and for each matrix."""
    weights = prunable(model)
    rows = [
        {"name": name, "weights": weight.numel(), "sparsity": 1 - int(weight.count_nonzero()) / weight.numel()} for name, weight in weights.items()
    ]  # fmt: skip
    zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in weights.values())
    return zeros / sum(w.numel() for w in weights.values()), zeros / sum(p.numel() for p in model.parameters()), rows


# -- whole hidden units


def unit_importance(gate_up: Tensor, down: Tensor) -> Tensor:
    """Mean absolute weight of each hidden unit: its gate and up columns and its down row. `down`: (…, hidden, d_model) → (…, hidden)."""
    gate, up = gate_up.abs().chunk(2, dim=-1)
    total = gate.sum(-2) + up.sum(-2) + down.abs().sum(-1)
    return total / (2 * gate_up.shape[-2] + down.shape[-1])


def networks(model: Decoder) -> dict[str, tuple[Tensor, Tensor]]:
    """Each layer's gate_up and down, by their common name."""
    state = dict(model.named_parameters())
    prefixes = [name.removesuffix(".gate_up") for name in state if name.endswith(".gate_up")]
    return {prefix: (state[f"{prefix}.gate_up"].detach(), state[f"{prefix}.down"].detach()) for prefix in prefixes}


def units_below(model: Decoder, threshold: float) -> int:
    """How many of an expert's units are below `threshold`, where fewest are: all experts keep the same width."""
    return min(int((unit_importance(*pair) < threshold).sum(-1).min()) for pair in networks(model).values())


def without_units(model: Decoder, sparsity: float) -> Decoder:
    """A narrower model: of each network, the least important share of hidden units is gone. Experts keep one width, at least 1."""
    config = model.config

    def narrowed(width: int) -> int:
        return max(1, round(width * (1 - sparsity))) if width else 0

    smaller = config.with_(d_expert=narrowed(config.d_expert), d_dense=narrowed(config.d_dense))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for prefix, (gate_up, down) in networks(model).items():
        width = _width(prefix, smaller)
        kept = unit_importance(gate_up, down).topk(width, dim=-1).indices.sort(dim=-1).values  # …, width
        gate, up = gate_up.chunk(2, dim=-1)
        columns = kept.unsqueeze(-2).expand(*gate.shape[:-1], width)
        state[f"{prefix}.gate_up"] = torch.cat([gate.gather(-1, columns), up.gather(-1, columns)], dim=-1)
        state[f"{prefix}.down"] = down.gather(-2, kept.unsqueeze(-1).expand(*kept.shape, down.shape[-1]))
    with torch.device("meta"):
        narrow = Decoder(smaller)
    narrow.load_state_dict(state, assign=True)
    if smaller.tie_embeddings:
        narrow.head.weight = narrow.embedding.weight
    narrow.rebuild_tables()
    return narrow.eval()


def _width(prefix: str, config: ModelConfig) -> int:
    if prefix.endswith(".dense"):
        return config.d_dense
    return config.d_expert * (config.n_shared_experts if prefix.endswith(".shared") else 1)
