"""What a decoder remembers of the tokens before."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.moe.config import ModelConfig


@dataclass
class LayerCache:
    """Keys and values of one layer, each (B, cached heads, capacity, width). With latent attention `values` is a part of `keys`."""

    keys: Tensor
    values: Tensor


class KVCache:
    """What a decoder remembers of `length` tokens, the same number for each of `batch` sequences."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None):
        def zeros() -> Tensor:
            return torch.zeros(batch, config.cached_heads, capacity, config.cached_width, dtype=dtype, device=device)

        def layer() -> LayerCache:
            keys = zeros()
            return LayerCache(keys, keys[..., : config.kv_rank] if config.kv_rank else zeros())

        self.layers = [layer() for _ in range(config.n_layers)]
        self.length = 0
