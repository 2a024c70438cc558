"""The safetensors files of a model folder: one, or several with an index. Tensors are read by name, one at a time."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Shards:
    """Files are mapped, not read: a tensor's bytes come in when it is used. FileNotFoundError, SafetensorError, ValueError for a broken index."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._where: dict[str, str]
        if (folder / INDEX_FILE).exists():
            # A shard is a file of this folder: a path in the index must not lead out of it.
            index = json.loads((folder / INDEX_FILE).read_text())
            self._where = {name: Path(file).name for name, file in index["weight_map"].items()}
        else:
            self._where = dict.fromkeys(self._file(WEIGHTS_FILE).keys(), WEIGHTS_FILE)

    @property
    def names(self) -> list[str]:
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(self, name: str) -> Tensor:
        """In the type of the file. KeyError where the folder has no such tensor. Valid while this object lives."""
        tensor: Tensor = self._file(self._where[name]).get_tensor(name)
        return tensor

    def is_bf16(self, name: str) -> bool:
        """KeyError where the folder has no such tensor."""
        return bool(self._file(self._where[name]).get_slice(name).get_dtype() == "BF16")

    def close(self) -> None:
        """Let go of the mapped files; the next `read` opens them again."""
        self._open.clear()

    def _file(self, name: str) -> Any:
        if name not in self._open:
            if not (self._folder / name).exists():
                raise FileNotFoundError(2, "missing", str(self._folder / name))
            self._open[name] = safe_open(self._folder / name, framework="pt")
        return self._open[name]
