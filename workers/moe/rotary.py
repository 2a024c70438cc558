"""Rotary positions (RoFormer §3.2.2), the halves of a head rotated together."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from workers.moe.config import ModelConfig


def rope_tables(config: ModelConfig, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (max_seq_len, head_dim / 2)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    positions = torch.arange(config.max_seq_len, dtype=torch.float32, device=device)
    angles = torch.outer(positions, config.rope_theta**-exponents)
    return angles.cos(), angles.sin()


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
