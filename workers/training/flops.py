"""Model FLOPs utilisation: the products that a step needs, over what the machine could have done (PaLM, Chowdhery 2022, appendix B).

    FLOPs of a step = 6 · A · tokens + 6 · d · V · learnt tokens + 6 · L · H · h · tokens² / examples

A: active parameters without embedding and head; d, V: width and vocabulary (the head sees learnt tokens only); L, H, h: layers, heads
and their width; a token sees its own example only, on average half of its length (PaLM's 12 · L · H · h · length, halved). 6 is 2 for
the forward and 4 for the backward pass; what is frozen, beside adapters, needs no gradients of its own: 4. Recomputed activations
are not counted, as PaLM does not.
"""

import time

import torch

from workers.moe import Decoder, count_parameters

PEAK_SECONDS = 0.1


class Flops:
    def __init__(self, model: Decoder):
        config = model.config
        _, active = count_parameters(config)
        table = config.vocab_size * config.d_model
        learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = learnt < sum(p.numel() for p in model.parameters())
        self._a_token = (4 if frozen else 6) * (active - table * (1 if config.tie_embeddings else 2))
        self._a_learnt_token = (4 if frozen else 6) * table
        self._a_pair = 6 * config.n_layers * config.n_heads * config.head_dim

    def of(self, tokens: int, learnt: int, examples: int) -> float:
        return self._a_token * tokens + self._a_learnt_token * learnt + self._a_pair * tokens * tokens / examples


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product on this rank's device, with this rank's threads: the best of some, in a tenth of a second."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, end = 0.0, time.perf_counter() + PEAK_SECONDS
    out = a @ a  # warms up
    while True:
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        _wait(device)
        now = time.perf_counter()
        best = max(best, 2 * size**3 / (now - began))
        if now > end:
            return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
