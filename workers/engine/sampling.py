"""From logits to the next token."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn. `temperature=0` takes the most likely token; the defaults of the others change nothing.

    Penalties: `repetition` divides the logits of all tokens so far, the prompt's included (Keskar 2019 §4.1); `frequency`, for each
    time that it was written, and `presence`, once, are taken from those of the answer's tokens, as in OpenAI's API. `logit_bias` is
    added to the logits of its tokens (id, bias) first. They hold for the most likely token too. `logprobs`: report each token's
    log-probability, and those of so many of the likeliest. `schema`, JSON Schema as text, or `regex`: the form of the whole answer.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    seed: int | None = None  # None: another text each time
    stop: tuple[str, ...] = ()
    schema: str | None = None
    regex: str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens ({self.max_tokens}) must be at least 1")
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature ({self.temperature}) must not be negative")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p ({self.top_p}) must be more than 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k ({self.top_k}) must not be negative")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p ({self.min_p}) must be between 0 and 1")
        if not self.repetition_penalty > 0.0:
            raise ValueError(f"repetition_penalty ({self.repetition_penalty}) must be more than 0")
        if not np.isfinite([self.presence_penalty, self.frequency_penalty, *(bias for _, bias in self.logit_bias)]).all():
            raise ValueError("presence_penalty, frequency_penalty and logit_bias must be finite")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs ({self.logprobs}) must not be negative")
        if not all(self.stop):
            raise ValueError("a stop string must not be empty")

    @property
    def penalises(self) -> bool:
        """What was said so far matters."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)


class Likely(NamedTuple):
    """A token and its log-probability."""

    token: int
    logprob: float


class TokenLogprob(NamedTuple):
    """What the model thought of a token of the answer, and of the likeliest in its place, the likeliest first.

    Of the model's own distribution, before temperature, penalties and biases.
    """

    token: int
    logprob: float
    top: list[Likely]


def adjust(logits: NDArray[np.float32], params: SamplingParams, seen: Collection[int], said: Mapping[int, int]) -> NDArray[np.float32]:
    """(vocab,) logits with biases and penalties, a copy where there are any. `seen`: tokens so far; `said`: the answer's, how often each."""
    if not params.logit_bias and not params.penalises:
        return logits
    logits = logits.copy()
    for token, bias in params.logit_bias:
        logits[token] += bias
    if params.repetition_penalty != 1.0:
        ids = np.fromiter(seen, np.intp, len(seen))
        before = logits[ids]
        logits[ids] = np.where(before > 0, before / params.repetition_penalty, before * params.repetition_penalty)
    if said:
        ids, times = np.fromiter(said.keys(), np.intp, len(said)), np.fromiter(said.values(), np.float32, len(said))
        logits[ids] -= params.presence_penalty + params.frequency_penalty * times
    return logits


def draw(logits: NDArray[np.float32], params: SamplingParams, chance: float) -> int:
    """One token from (vocab,) logits: tempered, then the top k, then the smallest set of them that holds `top_p` (Holtzman 2020 §3.1),
    then those at least `min_p` times as likely as the likeliest (Nguyen 2024 §3).

    `chance`: of 0 to 1, uniform, from which the token follows. One is taken from the seed for each token, so that it gives the same text
    whatever else runs.
    """
    kept = _top_k(logits, params.top_k)
    probabilities = _softmax(logits[kept].astype(np.float64) / params.temperature)
    if params.top_p < 1.0:
        inside = _nucleus(probabilities, params.top_p)
        kept, probabilities = kept[inside], probabilities[inside]
    if params.min_p > 0.0:
        inside = np.flatnonzero(probabilities >= params.min_p * probabilities.max())
        kept, probabilities = kept[inside], probabilities[inside]
    cumulative = np.cumsum(probabilities)
    at = int(np.searchsorted(cumulative, chance * cumulative[-1], side="right"))
    return int(kept[min(at, len(kept) - 1)])


def logprobs_of(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Log-probabilities of `token` and of the `top` likeliest, from (vocab,) logits as the model gave them."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    likeliest = _top_k(logits, top) if top else np.empty(0, np.intp)
    order = likeliest[np.argsort(-wide[likeliest], kind="stable")]
    return TokenLogprob(token, float(wide[token]), [Likely(int(i), float(wide[i])) for i in order])


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
