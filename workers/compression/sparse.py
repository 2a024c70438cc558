"""Tensors with many zeros, stored as a bit for each weight and the values of those that are not zero.

A matrix of n weights, a share s of them zero, takes n / 8 + 4 n (1 - s) bytes in place of 4 n: smaller from s = 1/32 on.
`<name>` then holds the values, one behind the other, `<name>_mask` the bits, eight a byte; its shape is in config.json's `storage`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = "sparse"
MASK = "_mask"

Tensors = dict[str, Tensor]


def encode(tensors: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """The tensors as they are stored, and the `storage` entry that says how."""
    stored: Tensors = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().float().flatten()
        kept = flat != 0
        if flat.numel() / 8 + 4 * int(kept.sum()) >= 4 * flat.numel():
            stored[name] = tensor.float().contiguous()
            continue
        shapes[name] = list(tensor.shape)
        stored[name] = flat[kept]
        stored[name + MASK] = torch.from_numpy(np.packbits(kept.numpy()))
    return stored, {"format": FORMAT, "shapes": shapes}


def decode(tensors: Tensors, storage: dict[str, Any]) -> Tensors:
    """What `encode` made, dense again."""
    shapes = storage["shapes"]
    return {
        name: _dense(tensor, tensors[name + MASK], shapes[name]) if name in shapes else tensor
        for name, tensor in tensors.items()
        if not (name.endswith(MASK) and name.removesuffix(MASK) in shapes)
    }


def _dense(values: Tensor, mask: Tensor, shape: list[int]) -> Tensor:
    size = int(np.prod(shape))
    kept = torch.from_numpy(np.unpackbits(mask.numpy(), count=size).astype(bool))
    dense = torch.zeros(size)
    dense[kept] = values.float()
    return dense.view(shape)
