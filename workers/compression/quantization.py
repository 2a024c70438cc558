"""Weights rounded to 8 bits, one scale for each output (symmetric, Jacob et al. 2018 §2.1; W8A8 as compressed-tensors lays it out).

A quantized tensor keeps its name and shape; beside it lies `<name>_scale`, of size 1 along dimension 1, the inputs: matrices are stored
(outputs, inputs), stacked experts (experts, inputs, outputs), embeddings (tokens, d_model). What is no matrix stays as it was, and so do
routers, whose rounding would send tokens to other experts.
"""

from typing import Any

import torch
from torch import Tensor

FORMAT = "int8"
MIXED = "mixed"  # some matrices stay floating point (`sensitivity`): read like the other, computed in FP32
SCALE = "_scale"
LARGEST = 127

_MATRICES = ("_proj.weight", "embed_tokens.weight", "lm_head.weight", "experts.gate_up_proj", "experts.down_proj")

Tensors = dict[str, Tensor]


def quantize(weight: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """`weight ≈ quantized · scale`: int8 and float16, the scale of size 1 along `dim`. An error is at most half a scale."""
    # The scale is rounded up to float16 first and the weights are divided by the rounded one, so that its rounding costs nothing.
    wanted = weight.float().abs().amax(dim, keepdim=True) / LARGEST
    scale = wanted.half()
    scale = torch.where(scale.float() < wanted, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    return (weight.float() / divisor).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantize(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized.float() * scale.float()


def is_quantized(name: str) -> bool:
    """Whether a tensor of that name is one of those that are rounded."""
    return name.endswith(_MATRICES)


def encode(tensors: Tensors) -> Tensors:
    """The tensors as they are stored. What holds small whole numbers only (a neutral bias) becomes int8 without a scale, exactly."""
    stored: Tensors = {}
    for name, tensor in tensors.items():
        if is_quantized(name) and tensor.numel():
            stored[name], stored[name + SCALE] = (part.contiguous() for part in quantize(tensor))
        elif tensor.numel() and torch.equal(tensor.clamp(-LARGEST, LARGEST).to(torch.int8).to(tensor.dtype), tensor):
            stored[name] = tensor.to(torch.int8).contiguous()
        else:
            stored[name] = tensor.float().contiguous()
    return stored


def decode(tensors: Tensors, storage: dict[str, Any]) -> Tensors:
    """What `encode` made, as floating point again."""
    del storage
    scales = {name for name in tensors if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors}
    return {
        name: dequantize(tensor, tensors[name + SCALE]) if name + SCALE in scales else tensor.float()
        for name, tensor in tensors.items()
        if name not in scales
    }
