"""One question and its answer so far, and the ticket by which the asker follows it."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workers.engine.constraint import Constraint
from workers.engine.errors import EngineError
from workers.engine.runner import Chunk
from workers.engine.sampling import SamplingParams, TokenLogprob, adjust, draw, logprobs_of
from workers.engine.text import TextStream, Vocabulary

FinishReason = Literal["stop", "length", "cancelled", "timeout"]  # timeout: its deadline passed
OnToken = Callable[[str], None]
Embedded = Many[tuple[int, NDArray[np.float32]]]


@dataclass(frozen=True)
class Completion:
    """A finished answer. `text` has no space around it; the pieces given to `on_token`, joined, are the same."""

    text: str
    tokens: int  # of the answer, the end token not counted
    prompt_tokens: int
    seconds: float  # from its first forward to its last; waiting for a slot is not counted
    finish_reason: FinishReason
    reused_tokens: int = 0  # of the prompt, whose keys and values were there from before
    logprobs: tuple[TokenLogprob, ...] = ()  # of each token, where they were asked for; those of a stop string are among them
    waited_seconds: float = field(default=0.0, compare=False)  # for a slot
    prefill_seconds: float = field(default=0.0, compare=False)  # of `seconds`, until its first token


class Ticket:
    """What the asker holds. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._cancelled = threading.Event()
        self._completion: Completion | None = None
        self._error: EngineError | None = None
        self._lock = threading.Lock()
        self._when_done: Callable[[], None] | None = None
        self.embedding: NDArray[np.float32] | None = None  # (d_model,), of a text that is only read
        self.logprobs: list[TokenLogprob] = []  # grows while the answer does, ahead of the text that is told

    def done(self) -> bool:
        return self._ended.is_set()

    def when_done(self, hear: Callable[[], None]) -> None:
        """Call `hear` once, when the answer has ended; at once where it has. It comes from the engine's thread: it must be quick."""
        with self._lock:
            if not self._ended.is_set():
                self._when_done = hear
                return
        hear()

    def cancel(self) -> None:
        """Let the sequence leave before the next step. Its result is what came until then, with `finish_reason="cancelled"`."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the answer. TimeoutError after `timeout` seconds; EngineClosed or another EngineError where it cannot come."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"No answer within {timeout} s.")
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    def resolve(self, outcome: Completion | EngineError) -> None:
        """The engine's side: end the waiting. A second call is ignored."""
        with self._lock:
            if self._ended.is_set():
                return
            if isinstance(outcome, Completion):
                self._completion = outcome
            else:
                self._error = outcome
            self._ended.set()
            hear = self._when_done
        if hear:
            hear()


class Sequence:
    """Tokens of one conversation: a prompt, then an answer that grows. Only the engine's thread touches it."""

    def __init__(
        self, prompt: list[int], sampling: SamplingParams, room: int, vocabulary: Vocabulary, on_token: OnToken | None,
        embedded: Embedded = (), *, tenant: str = "", is_batch: bool = False, deadline: float = math.inf,
        is_read_only: bool = False, constraint: Constraint | None = None,
    ):  # fmt: skip
        """`room`: the most tokens the answer may have, at least 1. `embedded`: rows of pictures, and where in the prompt they begin.

        `tenant`: who shares the engine fairly with others. `is_batch`: nobody waits for it; nor is anything reused for it, so that what is
        measured with batches is computed. `deadline`: of `time.monotonic`, after which it is cancelled. `is_read_only`: what is wanted is the
        mean of the prompt's hidden states, no answer. `constraint`: the answer's form.
        """
        self._constraint = constraint
        self._embedded = embedded
        self.tenant, self.is_batch, self.deadline = tenant, is_batch, deadline
        self.is_read_only = is_read_only
        # A picture's tokens are the same whatever it shows; and what was not read again has no hidden states.
        self.may_reuse = not embedded and not is_batch and not is_read_only
        self.reused_tokens = 0
        self.preemptions = 0
        self.prompt_tokens = self.to_read = len(prompt)  # to_read: after so many tokens it decodes, one a step
        self.tokens = list(prompt)
        self.sampling = sampling
        self._penalises = sampling.penalises
        # Its next token is the likeliest, whatever was said, and only an end or its room ends it: nobody need look at each.
        self.is_plain = (
            not (sampling.temperature or self._penalises or sampling.logit_bias or sampling.stop or constraint) and sampling.logprobs is None
        )
        self.room = room
        self.ticket = Ticket()
        self.slot = -1  # none yet
        self.in_cache = 0  # so many of `tokens` has the runner seen
        self.finish_reason: FinishReason | None = None
        self._on_token = on_token
        self._stream = TextStream(vocabulary, sampling.stop)
        self._random = np.random.default_rng(sampling.seed)
        self._chances: deque[float] = deque()  # of the tokens to come, as far as anyone has asked for them
        self._seen = set(prompt) if self._penalises else set()
        self._said: Counter[int] = Counter()
        self._latest: TokenLogprob | None = None
        self._states = np.zeros(0, np.float64)
        self._asked = time.monotonic()
        self._began = self._first = 0.0  # when it got its slot, and its first token

    @property
    def answer_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def is_decoding(self) -> bool:
        return self.in_cache >= self.to_read

    def start(self, slot: int, known: int) -> None:
        """`known`: so many of the first tokens does the slot hold already, fewer than all."""
        self.slot = slot
        self.in_cache = known
        if not self.preemptions:
            self.reused_tokens = known
            self._began = time.monotonic()

    def interrupt(self) -> None:
        """Its slot is another's now. It goes on in a later one, where prompt and answer so far are read again; what it has drawn stays drawn."""
        self.preemptions += 1
        self.slot, self.in_cache, self.to_read = -1, 0, len(self.tokens)
        self._states = np.zeros(0, np.float64)

    def known(self) -> list[int]:
        """The tokens that its slot holds when it leaves; none where they do not tell what is there."""
        return [] if self._embedded else self.tokens[: self.in_cache]

    def next_chunk(self, most: int) -> Chunk:
        """The tokens the runner has not seen, at most `most` of them."""
        start, end = self.in_cache, min(self.in_cache + most, len(self.tokens))
        if not self._embedded or start >= self.prompt_tokens:
            return Chunk(self.slot, start, self.tokens[start:end])
        parts = [(max(at, start), rows[max(start - at, 0) : max(end - at, 0)]) for at, rows in self._embedded]
        return Chunk(self.slot, start, self.tokens[start:end], [(at - start, rows) for at, rows in parts if len(rows)])

    def choose(self, logits: np.ndarray, most_likely: int) -> int:
        """The next token from (vocab,) `logits`, whose largest is at `most_likely`. EngineError where its form allows none."""
        adjusted = adjust(logits, self.sampling, self._seen, self._said)
        if self._constraint:
            adjusted = self._constraint.mask(adjusted)
        if self.sampling.temperature > 0.0:
            token = draw(adjusted, self.sampling, self._chance(0))
            self._chances.popleft()
        else:
            token = most_likely if adjusted is logits else int(adjusted.argmax())
        self._latest = logprobs_of(logits, token, self.sampling.logprobs) if self.sampling.logprobs is not None else None
        return token

    @property
    def may_guess(self) -> bool:
        """Its next tokens may be guessed: a draft sees no pictures, and knows no forms."""
        return not (self._embedded or self._constraint or self.is_read_only)

    def guess(self, logits: np.ndarray, ahead: int) -> int:
        """What a draft's (vocab,) `logits` say that the token will be which comes after the next `ahead`.

        By the random number of that very token: two models that think alike then draw alike.
        """
        adjusted = adjust(logits, self.sampling, self._seen, self._said)
        return draw(adjusted, self.sampling, self._chance(ahead)) if self.sampling.temperature > 0.0 else int(adjusted.argmax())

    def _chance(self, ahead: int) -> float:
        while len(self._chances) <= ahead:
            self._chances.append(self._random.random())
        return self._chances[ahead]

    def take_states(self, states: NDArray[np.float32]) -> None:
        """Of the tokens just read, (tokens, d_model). With the last of them the embedding is ready: their mean, of length 1."""
        self._states = self._states + states.sum(0, dtype=np.float64) if len(self._states) else states.sum(0, dtype=np.float64)
        self.in_cache += len(states)
        if self.in_cache >= self.prompt_tokens:
            length = np.linalg.norm(self._states)
            self.ticket.embedding = (self._states / (length or 1.0)).astype(np.float32)
            self.finish_reason = "stop"

    def append(self, tokens: list[int], end_ids: Container[int]) -> str:
        """Take the next tokens of the answer, one where it is not plain; what may be shown of them. Sets `finish_reason` where the last is its last."""
        self._first = self._first or time.monotonic()
        ended = tokens[-1] in end_ids
        said = tokens[:-1] if ended else tokens
        self.tokens += said
        if self._constraint:
            for token in said:
                self._constraint.consume(token)
        if self._penalises:
            self._seen.update(said)
            self._said.update(said)
        if self._latest and said:
            self.ticket.logprobs.append(self._latest)
        piece = self._stream.add(said)
        if ended or self._stream.stopped:
            self.finish_reason = "stop"
        elif self.answer_tokens >= self.room:
            self.finish_reason = "length"
        return piece

    def tell(self, piece: str) -> None:
        if piece and self._on_token:
            self._on_token(piece)

    def complete(self) -> None:
        """Give out the rest of the text, then the result."""
        assert self.finish_reason is not None
        self.tell(self._stream.finish())
        now = time.monotonic()
        began = self._began or now
        said = tuple(self.ticket.logprobs)
        self.ticket.resolve(
            Completion(
                self._stream.text, self.answer_tokens, self.prompt_tokens, now - began, self.finish_reason, self.reused_tokens, said,
                waited_seconds=began - self._asked, prefill_seconds=(self._first or now) - began,
            )
        )  # fmt: skip
