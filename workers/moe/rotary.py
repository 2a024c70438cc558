"""Rotary positions (RoFormer §3.2.2), the halves of a head rotated together."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from workers.moe.config import ModelConfig


def rope_tables(config: ModelConfig, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (max_seq_len, rotary_width / 2)."""
    width = config.rotary_width
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    frequencies = config.rope_theta**-exponents
    amplitude = 1.0
    if config.rope_scaling is not None:
        unscaled = [config.rope_theta ** (-i / width) for i in range(0, width, 2)]
        frequencies = torch.tensor(config.rope_scaling.stretch(unscaled, config.rope_theta), dtype=torch.float32, device=device)
        amplitude = config.rope_scaling.amplitude
    positions = torch.arange(config.max_seq_len, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    return angles.cos() * amplitude, angles.sin() * amplitude


def rotate_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` of as much of each head as the tables are wide, from its beginning."""
    width = 2 * cos.shape[-1]
    if width == x.shape[-1]:
        return rotate(x, cos, sin)
    return torch.cat([rotate(x[..., :width], cos, sin), x[..., width:]], dim=-1)


def rotate_last(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` of as much of each head as the tables are wide, up to its end."""
    passed = x.shape[-1] - 2 * cos.shape[-1]
    return torch.cat([x[..., :passed], rotate(x[..., passed:], cos, sin)], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x`: (B, H, T, head_dim); `cos`, `sin`: (T, head_dim / 2) or (B, 1, T, head_dim / 2). In FP32, out in the type of `x`."""
    return _Rotate.apply(x, cos, sin)


class _Rotate(Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=cos.dtype, device=x.device)
    into_first, into_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-way)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin, value=way)
    return out.to(x.dtype)
