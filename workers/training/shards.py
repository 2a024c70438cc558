"""Which rows of a tensor a rank holds, and reading them from files that were written by other ranks than those that read.

Ranks hold rows of dimension 0: FSDP2 shards so, and so are experts spread. A file says in its header which rows it has
(`rows`: name → [first row, rows of the whole tensor]), so that any number of ranks at any stage finds what it needs.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workers.training.parts import part_of, rows_of

Rows = tuple[int, int]  # first row, rows of the whole tensor


def write(path: Path, tensors: dict[str, Tensor], rows: dict[str, Rows]) -> None:
    """`rows`: of those tensors that are parts."""
    save_file(tensors, path, metadata={"rows": json.dumps(rows)})


class Saved:
    """The tensors of a checkpoint, whichever rank wrote them. KeyError for a name that is nowhere, ValueError for missing rows."""

    def __init__(self, paths: Iterable[Path]):
        self._pieces: dict[str, list[tuple[Any, int, int]]] = {}  # name → file, first row, rows of the whole tensor
        for path in paths:
            file = safe_open(path, "pt")
            rows = json.loads((file.metadata() or {}).get("rows", "{}"))
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                start, whole = rows.get(name, (0, -1))
                self._pieces.setdefault(name, []).append((file, start, whole))

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def names(self) -> list[str]:
        return list(self._pieces)

    def whole(self, name: str) -> Tensor:
        """Of a tensor that was not spread."""
        return self._pieces[name][0][0].get_tensor(name)

    def is_scalar(self, name: str) -> bool:
        return not self._pieces[name][0][0].get_slice(name).get_shape()

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Rows `start` … `start + count`, put together from the files that have them."""
        found: list[Tensor] = []
        at = start
        for file, first, _ in sorted(self._pieces[name], key=lambda piece: piece[1]):
            part = file.get_slice(name)
            last = first + part.get_shape()[0]
            if first <= at < min(last, start + count):
                end = min(last, start + count)
                found.append(part[at - first : end - first])
                at = end
        if at < start + count:
            raise ValueError(f"{name} lacks the rows from {at} to {start + count}")
        return found[0] if len(found) == 1 else torch.cat(found) if found else self.whole(name)[:0]

    def copy_into(self, name: str, target: Any, like: Any = None) -> None:
        """This rank's part of a tensor that is spread as `like` is (`target` itself, if not given)."""
        part = part_of(target)
        if not part.dim():
            part.copy_(self.whole(name))
            return
        start, _ = rows_of(target if like is None else like)
        part.copy_(self.rows(name, start, part.shape[0]))
