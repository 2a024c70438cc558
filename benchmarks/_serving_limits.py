"""The limit in `serving.py`: a step cannot be quicker than its weights are read, nor than they are multiplied.

What must be read are the blocks of an array as large as the model that hold attention, the output layer and the experts which the measured answers really went
through, step by step and in their order: what stays in a cache from one step to the next stays there here, too. Keys and values are left out.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from workers.moe import Decoder, ModelConfig, count_parameters

PRODUCT = """
import time, numpy
matrix, best = numpy.ones((512, 512), numpy.float32), 0.0
for _ in range(100):
    began = time.perf_counter()
    matrix @ matrix
    best = max(best, 512**3 / (time.perf_counter() - began))
print(best)
"""


def chosen_experts(model: Decoder, sequences: list[list[int]], steps: int) -> NDArray[np.int64]:
    """(layers, sequences, steps, k): the experts of the last tokens of equally long sequences, a step for each."""
    found: list[torch.Tensor] = []
    hooks = [block.feed_forward.router.register_forward_hook(lambda _module, _inputs, output: found.append(output[0])) for block in model.blocks]
    with torch.inference_mode():
        model(torch.tensor(sequences))
    for hook in hooks:
        hook.remove()
    return torch.stack(found).unflatten(1, (len(sequences), -1))[:, :, -steps:].numpy()


class Reading:
    """Reads what each step needs, and does nothing else: a peer whose rate no decoder passes. `bits`: of a weight."""

    def __init__(self, config: ModelConfig, chosen: NDArray[np.int64], bits: int, threads: int):
        self._chosen, self._threads = chosen, threads
        self._expert = 3 * config.d_model * config.d_expert * bits // 32
        self._attention = config.d_model * config.head_dim * 2 * (config.n_heads + config.n_kv_heads) * bits // 32
        self._head = config.vocab_size * config.d_model * bits // 32
        self._layer = self._attention + config.n_experts * self._expert
        self._values = np.ones(config.n_layers * self._layer + self._head, np.float32)
        self._known: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    @property
    def bytes(self) -> int:
        return self._values.nbytes

    def seconds(self, questions: list[str], tokens: int) -> float:
        blocks, ends = self._steps(len(questions))
        blocks = blocks[: ends[tokens - 1]]
        _read(self._values, blocks[:1], 0, 1)  # compiled
        with ThreadPoolExecutor(self._threads) as pool:
            began = time.perf_counter()
            list(pool.map(lambda part: _read(self._values, blocks, part, self._threads), range(self._threads)))
            return time.perf_counter() - began

    def read_bytes(self, together: int) -> float:
        """Of one step, on average."""
        blocks, ends = self._steps(together)
        return 4 * float((blocks[:, 1] - blocks[:, 0]).sum()) / len(ends)

    def close(self) -> None:
        del self._values

    def _steps(self, together: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where blocks begin and end, (blocks, 2), and how many there are up to the end of each step."""
        if together not in self._known:
            blocks, ends = [], []
            for step in range(self._chosen.shape[2]):
                for layer, experts in enumerate(self._chosen[:, :together, step]):
                    start = layer * self._layer
                    blocks.append((start, start + self._attention))
                    blocks += [(at := start + self._attention + expert * self._expert, at + self._expert) for expert in np.unique(experts)]
                blocks.append((len(self._values) - self._head, len(self._values)))
                ends.append(len(blocks))
            self._known[together] = np.array(blocks), np.array(ends)
        return self._known[together]


@numba.njit(nogil=True, fastmath=True)
def _read(values: NDArray[np.float32], blocks: NDArray[np.int64], part: int, parts: int) -> float:
    """The sum of one part of each block."""
    total = np.float32(0)
    for block in range(len(blocks)):
        start, size = blocks[block, 0], blocks[block, 1] - blocks[block, 0]
        piece = values[start + size * part // parts : start + size * (part + 1) // parts]
        for at in range(len(piece)):
            total += piece[at]
    return total


def fp32_peak() -> float:
    """Multiply-adds/s of one core in a large product: numpy's, which reaches 1.15 times what PyTorch's does here. In a process of its own, as its threads are many."""
    one = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return float(subprocess.run([sys.executable, "-c", PRODUCT], env=one, capture_output=True, text=True, check=True).stdout)


def multiplied(config: ModelConfig) -> int:
    """Weights that a token is multiplied with: of an embedding that is not the output layer it takes one row."""
    _, active = count_parameters(config)
    return active - (0 if config.tie_embeddings else config.vocab_size * config.d_model)
