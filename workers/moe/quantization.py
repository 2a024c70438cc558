"""Which quantized weights of other people's folders can be read, by what their config.json says. Data only: the web process asks it too.

| `quant_method`        | what is read                                                                                  |
|-----------------------|-----------------------------------------------------------------------------------------------|
| `mxfp4`               | gpt-oss's experts: two numbers of 4 bits a byte, with a power of two for each 32 (OCP MX v1.0) |
| `fp8`                 | E4M3 with a scale for each block (DeepSeek-V3: 128 × 128), or for the tensor                   |
| `compressed-tensors`  | 8 bits, int or float, symmetric, with a scale for each row, block or tensor                    |

How they are decoded is in `workers.moe.quantized`.
"""

from dataclasses import dataclass
from typing import Any

from workers.moe.layouts.parts import UnsupportedModel

_FORMATS = ("int-quantized", "float-quantized", "naive-quantized")
_STRATEGIES = ("channel", "tensor", "block")


@dataclass(frozen=True)
class Quantization:
    """`block`: rows and columns that share a scale, where scales form a table that is neither one a row nor one in all."""

    method: str
    block: tuple[int, int] | None = None


def quantization_of(described: dict[str, Any]) -> Quantization | None:
    """What config.json says of it; None where nothing is quantized. UnsupportedModel that names what cannot be read."""
    said = described.get("quantization_config") or described.get("compression_config")
    if not said:
        return None
    method = said.get("quant_method")
    if method == "mxfp4":
        return Quantization(method)
    if method == "fp8":
        if said.get("fmt") not in (None, "e4m3"):
            raise _unreadable(f"fp8 with fmt {said['fmt']}")
        return Quantization(method, _block(said.get("weight_block_size")))
    if method == "compressed-tensors":
        return Quantization(method, _compressed_block(said))
    raise _unreadable(str(method))


def _compressed_block(said: dict[str, Any]) -> tuple[int, int] | None:
    if (said.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise _unreadable(f"compressed-tensors {said['sparsity_config']['format']}")
    if said.get("transform_config"):
        raise _unreadable("compressed-tensors with transforms")
    blocks = set()
    for group in (said.get("config_groups") or {}).values():
        form, weights = group.get("format") or said.get("format"), group.get("weights")
        if weights is None:
            continue
        if form not in _FORMATS:
            raise _unreadable(f"compressed-tensors {form}")
        if weights.get("num_bits") != 8:
            raise _unreadable(f"compressed-tensors {form} of {weights.get('num_bits')} bits")
        if not weights.get("symmetric", True):
            raise _unreadable(f"compressed-tensors {form}, asymmetric")
        if weights.get("strategy") not in _STRATEGIES:
            raise _unreadable(f"compressed-tensors {form} by {weights.get('strategy')}")
        if weights["strategy"] == "block":
            blocks.add(_block(weights.get("block_structure")))
    if len(blocks) > 1:
        raise _unreadable("compressed-tensors with blocks of several sizes")
    return blocks.pop() if blocks else None


def _block(sizes: Any) -> tuple[int, int] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise _unreadable(f"blocks of {sizes}")
    return sizes[0], sizes[1]


def _unreadable(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"Weights quantized as {what} cannot be read; MXFP4, FP8 in blocks and compressed-tensors' symmetric 8 bits can. Use the model's unquantized folder."
    )
