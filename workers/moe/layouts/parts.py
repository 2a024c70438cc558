"""How one tensor of ours is made of theirs, as data, so that the same description reads, writes, and says what a folder must hold.

It works on NumPy's arrays as on PyTorch's tensors, and needs no torch then: an engine starts in half the time without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
Index = tuple[int | slice | EllipsisType, ...]


class UnsupportedModel(ValueError):
    """A folder holds a model that this decoder does not express. The message names what differs."""


@dataclass(frozen=True)
class Part:
    """`ours[at] = theirs[of]`. `turned`: theirs is the transpose. `view`: the shape in which both are indexed, where it is not their own.

    With `of`, theirs is as large as ours, and several parts of one entry share it.
    """

    theirs: str
    at: Index = ()
    of: Index = ()
    turned: bool = False
    view: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Entry:
    """One tensor of `workers.moe.model`, of the shape it has there. Without parts it is zero, and stored nowhere."""

    ours: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Fixed:
    """A tensor that the architecture has and our decoder has not: it must hold `value` (within a hundredth, for BF16's sake)."""

    theirs: str
    value: np.ndarray


Entries = Iterator[Entry | Fixed]


def whole(ours: str, shape: tuple[int, ...], theirs: str) -> Entry:
    return Entry(ours, shape, (Part(theirs),))


def assemble(entry: Entry, read: Callable[[str], Any], out: Any) -> Any:
    """Our tensor, FP32, from theirs, one at a time. `read` gives a tensor by name; `out` is written. ValueError for a wrong shape."""
    if not entry.parts:
        out[...] = 0
    read_last: Any = None
    name = None
    for part in entry.parts:
        if part.theirs != name:  # parts of one tensor follow each other: reading may be decoding
            read_last, name = read(part.theirs), part.theirs
        value, target = read_last, out
        if part.view is not None:
            value, target = value.reshape(part.view), out.reshape(part.view)
        value, target = value[part.of or ...], target[part.at or ...]
        if part.turned:
            value = value.T
        if tuple(value.shape) != tuple(target.shape):
            raise ValueError(f"{part.theirs} has the shape {tuple(value.shape)}, not {tuple(target.shape)}")
        target[...] = value
    return out


def take_apart(entry: Entry, ours: Tensor) -> Tensors:
    """Their tensors, contiguous, from ours. ValueError for a wrong shape."""
    import torch

    if tuple(ours.shape) != entry.shape:
        raise ValueError(f"{entry.ours} has the shape {tuple(ours.shape)}, not {entry.shape}")
    out: Tensors = {}
    for part in entry.parts:
        value = (ours if part.view is None else ours.reshape(part.view))[part.at or ...]
        if part.turned:
            value = value.T
        if part.of:
            if part.theirs not in out:
                out[part.theirs] = torch.empty(entry.shape, dtype=ours.dtype)
            target = out[part.theirs]
            (target if part.view is None else target.view(part.view))[part.of] = value
        else:
            out[part.theirs] = value.contiguous()
    return out


def require_fixed(fixed: Fixed, read: Callable[[str], Any]) -> None:
    """UnsupportedModel where the folder's tensor says something else."""
    if not fixed.value.size:
        return
    given = read(fixed.theirs)
    found = np.asarray(given if isinstance(given, np.ndarray) else given.float(), np.float32)
    if found.shape != fixed.value.shape or not np.allclose(found, fixed.value, rtol=0.01, atol=0):
        raise UnsupportedModel(f"{fixed.theirs} is not {fixed.value.flat[0]:g} throughout, as the rest of config.json says: a model of another kind.")
