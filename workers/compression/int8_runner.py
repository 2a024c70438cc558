"""An INT8 model as the engine runs it: the fused decoder, compiled for INT8 matrices."""

from typing import Any

import numpy as np

from workers.compression.int8_layers import Room, forward
from workers.engine.fused_runner import FusedRunner
from workers.moe.config import ModelConfig


class Int8Runner(FusedRunner):
    """Compiled code over packed INT8 weights."""

    compiled: Any = staticmethod(forward)
    kept_as = np.uint16  # BF16: closer to what they are than their activations of 8 bits were, and half the memory to read

    @staticmethod
    def room(config: ModelConfig, rows: int) -> Room:
        copies = rows * max(config.top_k, 1)
        widest = max(config.d_model, config.n_heads * config.head_dim, config.d_dense, config.d_expert * max(1, config.n_shared_experts))
        return Room(np.zeros((copies, -(-widest // 4) * 4), np.uint8), np.zeros(copies, np.float32))
