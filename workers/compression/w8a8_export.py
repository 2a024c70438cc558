"""`python -m workers.compression.w8a8_export FOLDER OUT`: an INT8 version as servers of W8A8 checkpoints (vLLM, SGLang, transformers) load it.

The matrices stay as they are, byte for byte. What differs from our own folder, because those servers do not express it:

- Embeddings are BF16, and the output matrix is a tensor of its own: no server looks up, and multiplies by, one int8 tensor.
- gpt_oss without its peculiarities: activations are `gate · σ(1.702 · gate)` there, whatever config.json says; so gates' scales are divided and
  downs' multiplied by 1.702, which is the same function (up to the clamp at 7 that they have). Biases are BF16, each with its expert.
- Our own keys of config.json are left out.

Sizes are known before a tensor is read, and one tensor is held at a time, so that a web process can send the files as they are made. Needs no torch.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from workers.compression.w8a8 import EMBEDDING, FORMAT, SCALE, quantization_config
from workers.moe.config import VISION_FILE
from workers.protocol import JobError

ALPHA, LIMIT = 1.702, 7.0  # of gpt-oss, fixed in servers
HEAD = "lm_head.weight"
WEIGHTS_FILE = "model.safetensors"
CHUNK_BYTES = 2**20

_DTYPES = {"I8": np.dtype(np.int8), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32)}

Array = NDArray[Any]


@dataclass(frozen=True)
class File:
    name: str
    size_bytes: int
    read: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Tensor:
    """One that is written. `kind`: as safetensors names types."""

    kind: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * _DTYPES[self.kind].itemsize


Tensors = dict[str, Tensor]


def files_of(folder: Path) -> list[File]:
    """What the export consists of. JobError where `folder` is not that of an INT8 version, or is damaged."""
    try:
        described = json.loads((folder / "config.json").read_text())
        if (described.get("storage") or {}).get("format") != FORMAT:
            raise JobError(f"{folder.name} is not an INT8 version; only such is exported as W8A8.")
        if "quantization_config" not in described:
            raise JobError(f"{folder.name} was written by an earlier version of this program; compress its parent again.")
        tensors = _exported(_stored(folder), described)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise JobError(f"The files of {folder.name} are damaged: {error}.") from error
    config = json.dumps(_described(described, tensors), indent=1, ensure_ascii=False).encode() + b"\n"
    kept = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(("model", "config.json", VISION_FILE))]
    return [
        File("config.json", len(config), lambda: iter((config,))),
        *(File(path.name, path.stat().st_size, partial(_chunks, path)) for path in kept),
        _weights_file(tensors),
    ]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _stored(folder: Path) -> Tensors:
    """The folder's tensors as they lie there."""
    found: Tensors = {}
    paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise JobError(f"{folder.name} has no {WEIGHTS_FILE}.")
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_slice(name)
                found[name] = Tensor(tensor.get_dtype(), tuple(tensor.get_shape()), partial(_read, path, name))
    return found


def _read(path: Path, name: str) -> Array:
    with safe_open(path, framework="numpy") as file:
        value: Array = file.get_tensor(name)
    return value


def _described(described: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    changes: dict[str, Any] = {"tie_word_embeddings": False, "dtype": "bfloat16"}
    if _needs_their_units(described):
        changes |= {"swiglu_alpha": ALPHA, "swiglu_limit": LIMIT}
    changes["quantization_config"] = quantization_config(tensors, tied=False)
    return {name: value for name, value in described.items() if name != "storage"} | changes


def _needs_their_units(described: Mapping[str, Any]) -> bool:
    return described["model_type"] == "gpt_oss" and described["swiglu_alpha"] == 1.0


# -- what becomes of the tensors


def _exported(stored: Tensors, described: Mapping[str, Any]) -> Tensors:
    out: Tensors = {}
    for name, tensor in stored.items():
        if name in (EMBEDDING, HEAD):
            out[name] = _as_bf16(tensor, stored.get(name + SCALE))
        elif name.endswith(("experts.gate_up_proj_bias", "experts.down_proj_bias")):
            out |= _one_by_one(name, tensor)
        elif name.removesuffix(SCALE) in (EMBEDDING, HEAD):
            continue
        elif _needs_their_units(described) and ".experts." in name and name.endswith(f"_proj.weight{SCALE}"):
            out[name] = _in_their_units(name, tensor)
        else:
            out[name] = tensor
    out.setdefault(HEAD, out[EMBEDDING])
    return out


def _as_bf16(tensor: Tensor, scale: Tensor | None = None) -> Tensor:
    def make() -> Array:
        value = tensor.make().astype(np.float32)
        return (value if scale is None else value * scale.make().astype(np.float32)).astype(ml_dtypes.bfloat16)

    return Tensor("BF16", tensor.shape, make)


def _in_their_units(name: str, scale: Tensor) -> Tensor:
    """A gate g becomes g / 1.702: g/1.702 · σ(1.702 · g/1.702) = g · σ(g) / 1.702, which down undoes."""
    factor = {"gate_proj": 1 / ALPHA, "down_proj": ALPHA}.get(name.split(".")[-2], 1.0)
    return scale if factor == 1.0 else Tensor("F32", scale.shape, lambda: scale.make().astype(np.float32) * np.float32(factor))


def _one_by_one(name: str, biases: Tensor) -> Tensors:
    """Stacked biases, (experts, outputs), each with its expert; gate and up are interleaved."""
    prefix, projection = name.removesuffix("_bias").rsplit(".", 1)
    parts = {"down_proj": slice(None)} if projection == "down_proj" else {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
    width = biases.shape[1] // len(parts)

    def bias(expert: int, part: slice) -> Array:
        return biases.make()[expert, part].astype(np.float32).astype(ml_dtypes.bfloat16)

    return {
        f"{prefix}.{expert}.{projection}.bias": Tensor("BF16", (width,), partial(bias, expert, part))
        for expert in range(biases.shape[0])
        for projection, part in parts.items()
    }


# -- the file


def _weights_file(tensors: Tensors) -> File:
    """One safetensors file; the widest types first, so that each tensor begins at a multiple of its type."""
    ordered = sorted(tensors, key=lambda name: (-_DTYPES[tensors[name].kind].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        tensor, start = tensors[name], end
        end += tensor.size_bytes
        header[name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)

    def read() -> Iterator[bytes]:
        yield len(head).to_bytes(8, "little") + head
        for name in ordered:
            made = tensors[name].make()
            if made.dtype != _DTYPES[tensors[name].kind] or made.nbytes != tensors[name].size_bytes:
                raise ValueError(f"{name} is not the tensor that was announced")
            yield made.tobytes()

    return File(WEIGHTS_FILE, 8 + len(head) + end, read)


def export(folder: Path, into: Path) -> None:
    """JobError as `files_of`. `into` appears when it is whole."""
    files = files_of(folder)
    temporary = into.with_name(f".{into.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for file in files:
        with (temporary / file.name).open("wb") as written:
            written.writelines(file.read())
    shutil.rmtree(into, ignore_errors=True)
    temporary.rename(into)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("into", type=Path)
    given = parser.parse_args()
    try:
        export(given.folder, given.into)
    except JobError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
