"""Which weights of a model matter least, by their absolute value (L1 magnitude; Han et al. 2015 §3.1), and the model without them.

Pruned are the matrices of attention, experts and dense networks. Embeddings, norms and routers stay: they are small, and what they
lose is lost for every token.
"""

import torch
from torch import Tensor

from workers.moe import Decoder

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


def smallest_of_each(weights: dict[str, Tensor], sparsity: float) -> Masks:
    """The smallest share of each matrix by itself: no layer is emptied for another's sake. Of equal weights the first ones go."""
    masks = {}
    for name, weight in weights.items():
        keep = torch.ones(weight.numel(), dtype=torch.bool)
        keep[weight.abs().flatten().argsort(stable=True)[: round(sparsity * weight.numel())]] = False
        masks[name] = keep.view_as(weight)
    return masks


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
