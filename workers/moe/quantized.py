"""Quantized folders, read as if they were not: a tensor at a time, so that beside the model no more is held than one of its tensors."""

import torch
from torch import Tensor

from workers.moe.quantization import Quantization
from workers.moe.shards import Shards

_EIGHT_BITS = (torch.float8_e4m3fn, torch.int8)

# What 4 bits mean: a sign, two bits of exponent and one of mantissa (OCP MX v1.0 §5.3.3).
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0], dtype=torch.bfloat16)
_BYTES = torch.arange(256)
# Each byte's two numbers, the low half first, as the 32 bits that they are in BF16: one look-up for both.
_PAIRS = torch.stack([_FP4[_BYTES & 15], _FP4[_BYTES >> 4]], dim=1).view(torch.int32).flatten()
_GROUP = 32  # numbers that share a scale in MXFP4


class Decoded:
    """A folder's tensors under the names, and as the numbers, that they have in an unquantized one."""

    def __init__(self, shards: Shards, quantization: Quantization | None):
        self._shards = shards
        self._block = quantization.block if quantization else None

    def is_bf16(self, name: str) -> bool:
        """Whether BF16 holds its numbers exactly."""
        return f"{name}_blocks" in self._shards if name not in self._shards else self._shards.is_bf16(name)

    def read(self, name: str) -> Tensor:
        """As `Shards.read`, floating point. ValueError for bits without the scales that say what they mean."""
        if name not in self._shards and f"{name}_blocks" in self._shards:
            return mxfp4(self._shards.read(f"{name}_blocks"), self._shards.read(f"{name}_scales"))
        stored = self._shards.read(name)
        if stored.dtype in _EIGHT_BITS:
            for scale in (f"{name}_scale_inv", f"{name}_scale"):  # both are multiplied by
                if scale in self._shards:
                    return scaled(stored, self._shards.read(scale), self._block)
        if not stored.is_floating_point() or stored.itemsize < 2:
            raise ValueError(f"{name} is stored as {str(stored.dtype).removeprefix('torch.')}, without a scale")
        return stored


def mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """`blocks`: (E, rows, groups, 16) uint8, `scales`: (E, rows, groups) uint8 → (E, groups · 32, rows) BF16, exactly: a view, turned."""
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8 or blocks.shape != (*scales.shape, _GROUP // 2):
        raise ValueError(f"MXFP4 blocks of {tuple(blocks.shape)} do not fit scales of {tuple(scales.shape)}")
    out = torch.empty(*scales.shape, _GROUP, dtype=torch.bfloat16)
    for packed, power, into in zip(blocks, scales, out, strict=True):  # an expert at a time: what indexes is four times the bytes
        torch.index_select(_PAIRS, 0, packed.flatten().int(), out=into.view(torch.int32).view(-1))
        into.mul_((power.short() << 7).view(torch.bfloat16).unsqueeze(-1))  # a power of two is the bits of its exponent
    return out.flatten(-2).mT


def scaled(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """`weight`: (rows, columns), 8 bits, times its `scale`: one number, one a row, or one a block, the last of which may be cut.

    FP32. ValueError where they do not fit.
    """
    if not scale.is_floating_point():
        raise ValueError(f"scales are stored as {str(scale.dtype).removeprefix('torch.')}, which says no scale")
    out, scale = weight.float(), scale.float()
    if scale.numel() == 1:
        return out.mul_(scale.view(()))
    table = scale.view(-1, 1) if scale.dim() == 1 else scale
    rows, columns = out.shape
    if block and tuple(table.shape) == (-(-rows // block[0]), -(-columns // block[1])):
        tall = table.repeat_interleave(block[0], dim=0)[:rows]
        for n, part in enumerate(out.split(block[1], dim=1)):
            part.mul_(tall[:, n : n + 1])
        return out
    if tuple(table.shape) == (rows, 1):
        return out.mul_(table)
    raise ValueError(f"scales of {tuple(scale.shape)} do not fit a weight of {tuple(weight.shape)}" + (f" in blocks of {block}" if block else ""))
