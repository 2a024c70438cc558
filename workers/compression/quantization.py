"""Weights rounded to 8 bits, one scale for each output, stored as compressed-tensors stores W8A8 (`quantization_config` says how).

A matrix `<module>.weight`, (outputs, inputs), is int8; beside it lies `<module>.weight_scale`, (outputs, 1) (symmetric, Jacob et al. 2018
§2.1). Experts that an architecture stacks in one tensor are stored one by one, `experts.<e>.gate_proj.weight` and so on, as llm-compressor
writes them and vLLM reads them. What is no matrix stays as it was, and so do routers, whose rounding would send tokens to other experts.

Earlier versions kept stacked experts in their one tensor, with a scale of size 1 along its inputs: such files are read too.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workers.compression.w8a8 import FORMAT, SCALE, quantization_config
from workers.moe import ChatTokenizer, ModelConfig, describe
from workers.moe.shards import Shards

LARGEST = 127

_STACKED = ("experts.gate_up_proj", "experts.down_proj")  # (experts, inputs, outputs); gate and up are interleaved (gpt_oss)
_MATRICES = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight", "_with_mqa.weight", "embed_tokens.weight", "lm_head.weight", *_STACKED)
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(gate|up|down)_proj\.weight")

Tensors = dict[str, Tensor]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight ≈ quantized · scale`: int8 and float16, the scale of size 1 along dimension 1. An error is at most half a scale."""
    # The scale is rounded up to float16 first and the weights are divided by the rounded one, so that its rounding costs nothing.
    wanted = weight.float().abs().amax(1, keepdim=True) / LARGEST
    scale = wanted.half()
    scale = torch.where(scale.float() < wanted, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    return (weight.float() / divisor).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantize(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized.float() * scale.float()


def is_quantized(name: str) -> bool:
    """Whether a tensor of that name, as the architecture has it, is one of those that are rounded."""
    return name.endswith(_MATRICES)


def encode(tensors: Mapping[str, Tensor], kept: Collection[str] = ()) -> Tensors:
    """The tensors as they are stored. `kept`: names of matrices that stay floating point."""
    stored: Tensors = {}
    for name, tensor in tensors.items():
        for part, matrix in _one_by_one(name, tensor):
            if name not in kept and is_quantized(name) and matrix.numel():
                stored[part], stored[part + SCALE] = (half.contiguous() for half in quantize(matrix))
            elif name.endswith("_proj_bias") and torch.equal(matrix.to(torch.int8).to(matrix.dtype), matrix):
                stored[part] = matrix.to(torch.int8).contiguous()  # a neutral bias of gpt_oss, 0 or -1: a file of many experts is 2 % smaller
            else:
                stored[part] = matrix.float().contiguous()
    return stored


def decode(tensors: Tensors, storage: dict[str, Any]) -> Tensors:
    """What `encode` made, as floating point and under the architecture's names again."""
    scales = {name for name in tensors if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors}
    decoded = {
        name: dequantize(tensor, tensors[name + SCALE]) if name + SCALE in scales else tensor.float()
        for name, tensor in tensors.items()
        if name not in scales
    }
    return _stack_experts(decoded) if storage.get("experts_apart") else decoded


def read_one(shards: Shards, storage: dict[str, Any], name: str) -> Tensor:
    """One tensor of those that `encode` made, as `decode` gives it. KeyError where the folder has none of that name."""
    experts = f"{name.rsplit('.', 1)[0]}."
    names = [name, name + SCALE] if name in shards else [other for other in shards.names if other.startswith(experts)]
    return decode({each: shards.read(each) for each in names if each in shards}, storage)[name]


def describe_quantized(config: ModelConfig, tokenizer: ChatTokenizer, stored: Mapping[str, Tensor], format_name: str = FORMAT) -> dict[str, Any]:
    """What `config.json` says of a model whose tensors `encode` made."""
    described = describe(config, tokenizer)
    storage = {"format": format_name, "model": config.as_dict(), "experts_apart": described["model_type"] == "gpt_oss"}
    return described | {"quantization_config": quantization_config(stored, tied=config.tie_embeddings), "storage": storage}


def _one_by_one(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The matrices of a stacked tensor, outputs first; anything else as it is."""
    if not name.endswith(_STACKED):
        yield name, tensor
        return
    prefix, projection = name.rsplit(".", 1)
    for expert, matrix in enumerate(tensor.transpose(1, 2)):
        if projection == "down_proj":
            yield f"{prefix}.{expert}.down_proj.weight", matrix
        else:
            yield f"{prefix}.{expert}.gate_proj.weight", matrix[0::2]
            yield f"{prefix}.{expert}.up_proj.weight", matrix[1::2]


def _stack_experts(tensors: Tensors) -> Tensors:
    """The other way round."""
    experts: dict[str, dict[int, Tensors]] = {}
    out: Tensors = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
        else:
            out[name] = tensor
    for prefix, of in experts.items():
        ordered = [of[number] for number in range(len(of))]
        out[f"{prefix}gate_up_proj"] = torch.stack([torch.stack([e["gate"], e["up"]], dim=1).flatten(0, 1).T for e in ordered])
        out[f"{prefix}down_proj"] = torch.stack([e["down"].T for e in ordered])
    return out
