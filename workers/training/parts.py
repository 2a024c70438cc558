"""What of a tensor this rank holds: all of it, its rows of a DTensor (FSDP2), or its experts of a stack."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """A parameter that holds the experts from `first` on, of `experts` in all; the ranks of `group` have the others, in their order.

    `copies`: the ranks that hold the same experts; None where this rank is the only one. `is_first_copy`: whether it speaks for them.
    """

    first: int
    experts: int
    group: dist.ProcessGroup
    copies: dist.ProcessGroup | None
    is_first_copy: bool


def set_share(parameter: Tensor, share: Share) -> None:
    parameter.expert_share = share  # type: ignore[attr-defined]


def share_of(tensor: Any) -> Share | None:
    """Of a parameter whose experts are spread; its detached twin in a state_dict does not know."""
    return getattr(tensor, "expert_share", None)


def part_of(tensor: Any) -> Tensor:
    """What this rank holds of a parameter, or of its optimizer state."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Any) -> Tensor:
    """A tensor of which each rank may hold a part, from all of them. Every rank must call it."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    share = share_of(tensor)
    if share is None:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(share.group))]
    dist.all_gather(parts, tensor.detach().contiguous(), group=share.group)
    return torch.cat(parts)


def rows_of(parameter: Any) -> tuple[int, int]:
    """The first row that this rank holds of a parameter with at least one dimension, and the rows of the whole."""
    if hasattr(parameter, "to_local"):  # FSDP2 cuts like Tensor.chunk
        mesh = parameter.device_mesh
        all_rows = parameter.shape[0]
        return min(all_rows, -(-all_rows // mesh.size()) * mesh.get_local_rank()), all_rows
    share = share_of(parameter)
    return (share.first, share.experts) if share else (0, parameter.shape[0])
