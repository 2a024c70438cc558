"""`python -m workers.engine`: compile the fused decoder ahead, so that the first model opened on this machine need not wait for it.

Takes about ten seconds of one core, once for an installation; a second call finds the result beside the package and ends at once.
"""

import logging
import time

import numpy as np

from workers.engine.fused_runner import FusedRunner
from workers.engine.fused_weights import arrange
from workers.engine.runner import Chunk
from workers.moe import ModelConfig

TINY = ModelConfig(vocab_size=8, d_model=4, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=4, d_expert=4, n_experts=2, top_k=1, max_seq_len=4)


def compile_ahead() -> None:
    """One forward of a model of zeros: the compiled code is the same for every shape."""
    shapes = {
        "embedding.weight": (8, 4), "head.weight": (8, 4), "norm.weight": (4,), "blocks.0.attention_norm.weight": (4,),
        "blocks.0.feed_forward_norm.weight": (4,), "blocks.0.attention.qkv.weight": (12, 4), "blocks.0.attention.out.weight": (4, 4),
        "blocks.0.feed_forward.router.weight": (2, 4), "blocks.0.feed_forward.router.bias": (2,),
        "blocks.0.feed_forward.experts.gate_up": (2, 4, 8), "blocks.0.feed_forward.experts.down": (2, 4, 4),
    }  # fmt: skip
    weights = arrange(TINY, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    FusedRunner(weights, threads=1, max_batch=1, max_seq_len=4).forward([Chunk(0, 0, [1])])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began = time.monotonic()
    compile_ahead()
    logging.getLogger(__name__).info("The decoder is compiled (%.1f s).", time.monotonic() - began)
