"""From logits to the next token."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn. `temperature=0` takes the most likely token; `top_k=0` and `top_p=1` leave all tokens in."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None  # None: another text each time
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens ({self.max_tokens}) must be at least 1")
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature ({self.temperature}) must not be negative")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p ({self.top_p}) must be more than 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k ({self.top_k}) must not be negative")
        if not all(self.stop):
            raise ValueError("a stop string must not be empty")


def draw(logits: NDArray[np.float32], params: SamplingParams, random: np.random.Generator) -> int:
    """One token from (vocab,) logits: tempered, then the top k, then the smallest set of them that holds `top_p` (Holtzman 2020 §3.1).

    One number is taken from `random` for each token, so that a seed gives the same text whatever else runs.
    """
    kept = _top_k(logits, params.top_k)
    probabilities = _softmax(logits[kept].astype(np.float64) / params.temperature)
    if params.top_p < 1.0:
        inside = _nucleus(probabilities, params.top_p)
        kept, probabilities = kept[inside], probabilities[inside]
    cumulative = np.cumsum(probabilities)
    at = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
    return int(kept[min(at, len(kept) - 1)])


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Where the largest are that together hold `top_p`, the one that crosses it included.

    All those below (1 - top_p) / n together hold less than 1 - top_p, so that none of them is needed: few are left to be sorted.
    """
    likely = np.flatnonzero(probabilities >= (1.0 - top_p) / len(probabilities))
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    return order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1]


def _top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """The ids of the k largest; all where k is 0."""
    if not 0 < k < len(logits):
        return np.arange(len(logits))
    return np.sort(np.argpartition(-logits, k - 1)[:k])


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max())
    return e / e.sum()
