"""The engine: one thread that repeats schedule → run → postprocess. Askers hand in a question and hold a ticket."""

import logging
import math
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from workers.engine.constraint import Constraints
from workers.engine.drafter import Drafter
from workers.engine.errors import CacheTooSmall, EngineClosed, EngineError, EngineFull, ParameterRefused, PictureRefused, PromptTooLong
from workers.engine.front_end import FrontEnd, Rows
from workers.engine.memory import CacheMemory
from workers.engine.runner import CopiesSlots, DecodesAlone, GivesMemoryBack, Logits, ReadsStates, Runner
from workers.engine.sampling import SamplingParams
from workers.engine.scheduler import Scheduler, Work
from workers.engine.sequence import Completion, Embedded, OnToken, Sequence, Ticket
from workers.engine.slots import Emptied
from workers.engine.text import Vocabulary
from workers.moe import BadPicture, ChatTokenizer, NoPictures, TemplateRefused

log = logging.getLogger(__name__)

# Steps that a runner takes by itself (`DecodesAlone`): so many, and for so long, may those wait who come, go away or read along.
ALONE_STEPS, ALONE_SECONDS = 32, 0.004
QUEUED_STEPS = 4  # where others wait for a slot that may become free
NOT_FINITE = "The model gives no finite numbers for this conversation; its weights are damaged."

Message = dict[str, str]  # role, content, and image where there is one


@dataclass(frozen=True)
class EngineStats:
    running: int
    waiting: int
    slots: int
    steps: int  # forwards since the engine was opened
    prompt_tokens: int  # read since then
    completion_tokens: int  # written since then
    reused_tokens: int  # of prompts, not read again since then: an earlier turn's keys and values were there
    cache_used_bytes: int  # that keys and values take now, those kept for later turns included
    cache_total_bytes: int  # that they may take; 0 where there is no budget
    preemptions: int  # since then: sequences that left their slot for want of memory, and went on later
    decode_turns: int = 0  # since then: a sequence's part in a forward that gave it tokens, more than one where guesses were right
    guessed_tokens: int = 0  # by the draft, since then
    accepted_tokens: int = 0  # of those


class Engine:
    """A loaded model that answers many at once. All public methods may be called from any thread."""

    def __init__(
        self, runner: Runner, tokenizer: ChatTokenizer, *, max_waiting: int = 256, prefill_tokens: int = 128, front_end: FrontEnd | None = None,
        memory: CacheMemory | None = None, draft: Runner | None = None,
    ):  # fmt: skip
        """`memory`: the budget for keys and values, the draft's too; without one there is enough for all slots. `draft`: a smaller model of the same
        tokenizer, with as many slots, for a runner that reads guesses."""
        self._longest = min(runner.max_seq_len, memory.most_tokens) if memory else runner.max_seq_len
        self._runner = runner
        # Where all work is this thread's, its own time is compared: on a busy machine the clock tells what else had the core.
        self._clock = time.thread_time if getattr(runner, "works_alone", False) else time.perf_counter
        self._drafter = Drafter(draft, read_tokens=prefill_tokens, clock=self._clock) if draft else None
        self._front_end = front_end
        self._tokenizer = tokenizer
        self._end_ids = tokenizer.end_ids
        self._decodes_alone = hasattr(runner, "decode")
        self._is_end = np.isin(np.arange(runner.vocab_size), list(self._end_ids))
        self._step_seconds = math.inf  # of the runner's last steps alone, each
        self._vocabulary = Vocabulary(tokenizer)
        self._constraints = Constraints(tokenizer, self._vocabulary)
        self._scheduler = Scheduler(runner.max_batch, prefill_tokens, may_copy=hasattr(runner, "copy_prefix"), memory=memory)
        self._max_waiting = max_waiting
        self._steps = self._prompt_tokens = self._completion_tokens = self._reused_tokens = 0
        self._decode_turns = self._guessed_tokens = self._accepted_tokens = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # -- the asker's side

    def submit(
        self, messages: Many[Message], sampling: SamplingParams, on_token: OnToken | None = None, *, tenant: str = "", is_batch: bool = False,
        deadline: float = math.inf,
    ) -> Ticket:  # fmt: skip
        """Ask. `on_token` hears pieces of the answer, whole characters, from the engine's thread: it must be quick.

        `tenant`: those who wait take turns by it. `is_batch`: after all who talk. `deadline`: of `time.monotonic`, after which the answer
        is cut, with `finish_reason="timeout"`.

        PromptTooLong (CacheTooSmall where memory is what is short); PictureRefused where a message's `image` cannot be read, or the model sees none; EngineFull where `max_waiting` wait already; EngineClosed; ParameterRefused for a token
        that is none, or a form that is not understood; EngineError for a role that is none.
        """
        sequence = self._sequence(messages, sampling, on_token, tenant=tenant, is_batch=is_batch, deadline=deadline)
        with self._changed:
            self._admit(sequence)
        return sequence.ticket

    def embed(self, text: str, *, tenant: str = "", deadline: float = math.inf) -> Ticket:
        """Read a text: when the ticket is done, its `embedding` is the mean of the last hidden states of all tokens, of length 1.

        PromptTooLong; ParameterRefused where the text has no tokens, or this model's runner gives no hidden states; EngineFull; EngineClosed.
        """
        if not hasattr(self._runner, "hidden_states"):
            raise ParameterRefused("An ONNX version gives no embeddings; name the one that it was made from.")
        tokens = self._tokenizer.encode(text)
        if not tokens:
            raise ParameterRefused("A text without a token has no embedding.")
        if len(tokens) > self._longest:
            raise self._too_long(len(tokens), self._longest)
        sequence = Sequence(
            tokens, SamplingParams(max_tokens=1), 1, self._vocabulary, None, tenant=tenant, deadline=deadline, is_read_only=True
        )  # fmt: skip
        with self._changed:
            self._admit(sequence)
        return sequence.ticket

    def generate_all(self, prompts: Iterable[Many[Message]], max_tokens: int, temperature: float = 0.0) -> list[Completion]:
        """Answers in the order of `prompts`, however many there are. A prompt that leaves no room has an empty one, and so has a picture
        that the model cannot see."""
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
        return [outcome if isinstance(outcome, Completion) else outcome.result() for outcome in [self._begin(p, sampling) for p in prompts]]

    def _begin(self, messages: Many[Message], sampling: SamplingParams) -> Ticket | Completion:
        try:
            sequence = self._sequence(messages, sampling, None, is_batch=True)
        except PromptTooLong as refusal:
            return Completion("", 0, refusal.tokens, 0.0, "length")
        except PictureRefused:
            return Completion("", 0, 0, 0.0, "stop")
        with self._changed:
            self._enqueue(sequence)
        return sequence.ticket

    def _sequence(self, messages: Many[Message], sampling: SamplingParams, on_token: OnToken | None, **manner: Any) -> Sequence:
        """`manner`: tenant, is_batch, deadline."""
        if wrong := next((token for token, _ in sampling.logit_bias if not 0 <= token < self._runner.vocab_size), None):
            raise ParameterRefused(f"logit_bias names token {wrong}; this model has {self._runner.vocab_size:,}, from 0 on.", "logit_bias")
        pictures = [message["image"] for message in messages if message.get("image")]
        try:
            prompt = self._tokenizer.encode_prompt(messages, self._front_end.tokens if self._front_end else 0)
            rows = [self._front_end.rows(picture) for picture in pictures] if self._front_end else []
        except KeyError as role:
            raise EngineError(f"A message has the role {role}; there are system, user and assistant.") from role
        except (NoPictures, BadPicture) as refusal:
            raise PictureRefused(str(refusal)) from refusal
        except TemplateRefused as refusal:
            raise ParameterRefused(str(refusal), "prompt") from refusal
        room = self._longest - len(prompt)
        if room < 1:
            raise self._too_long(len(prompt), self._longest - 1)
        manner["constraint"] = self._constraints.begin(sampling.schema, sampling.regex)
        return Sequence(prompt, sampling, min(room, sampling.max_tokens), self._vocabulary, on_token, self._places(prompt, rows), **manner)

    def _too_long(self, tokens: int, limit: int) -> PromptTooLong:
        memory = self._scheduler.memory
        if tokens >= self._runner.max_seq_len:
            return PromptTooLong(tokens, min(limit, self._runner.max_seq_len))
        return CacheTooSmall(tokens, limit, memory.bytes_of(tokens + 1), memory.total_bytes)

    def _places(self, prompt: list[int], pictures: list[Rows]) -> Embedded:
        """Where in the prompt each picture's rows begin: the tokens that hold their places stand together."""
        if not pictures:
            return ()
        held = np.flatnonzero(np.array(prompt) == self._tokenizer.image_id)
        return list(zip(held[:: len(pictures[0])].tolist(), pictures, strict=True))

    def _admit(self, sequence: Sequence) -> None:
        if len(self._scheduler.waiting) >= self._max_waiting and not self._closed:
            raise EngineFull(f"{len(self._scheduler.waiting)} questions wait already; ask again in a moment.")
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        if self._closed:
            raise EngineClosed("The engine was closed; ask again.")
        self._scheduler.add(sequence)
        self._changed.notify()

    def spell(self, token: int) -> bytes:
        """The bytes of a token, of a special one its name."""
        return self._vocabulary.bytes_of(token) or self._tokenizer.token_text(token).encode()

    def stats(self) -> EngineStats:
        with self._changed:
            running, waiting = len(self._scheduler.running), len(self._scheduler.waiting)
            return EngineStats(
                running, waiting, self._runner.max_batch, self._steps, self._prompt_tokens, self._completion_tokens, self._reused_tokens,
                self._scheduler.memory.used_bytes, self._scheduler.memory.total_bytes, self._scheduler.preemptions,
                self._decode_turns, self._guessed_tokens, self._accepted_tokens,
            )  # fmt: skip

    def close(self) -> None:
        """End: whoever waits hears EngineClosed, and the model's memory is given back. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the engine's thread

    def _loop(self) -> None:
        try:
            while not self._closed:
                if not self.step():
                    with self._changed:
                        self._changed.wait_for(lambda: self._closed or self._scheduler.waiting)
        finally:
            self._closed = True  # whatever ended the loop: nobody may wait for an answer that cannot come
            self._abandon(EngineClosed("The engine was closed before the answer was complete; ask again."))
            self._runner.close()
            if self._drafter:
                self._drafter.close()

    def step(self) -> bool:
        """One turn: who comes and who goes, one forward or a few, a token more of each for those that decode. False where nothing was to be done."""
        with self._changed:
            gone = self._scheduler.remove_cancelled(time.monotonic())
            work = self._scheduler.schedule()
            errands, self._scheduler.errands = self._scheduler.errands, []
        for sequence in gone:
            sequence.finish_reason = "cancelled" if sequence.ticket.is_cancelled else "timeout"
            self._complete(sequence)
        if not work:
            return False
        try:
            for errand in errands:
                if isinstance(errand, Emptied):
                    cast(GivesMemoryBack, self._runner).empty(errand.slot)
                    if self._drafter:
                        self._drafter.empty(errand.slot)
                else:
                    cast(CopiesSlots, self._runner).copy_prefix(cast(int, errand.source), errand.slot, errand.known)
            self._read(work)
            work = [w for w in work if not w.sequence.is_read_only]
            if not work:
                return True
            work = self._with_guesses(work)
            steps = self._steps_alone(work)
            found = self._decode(work, steps) if steps else self._runner.forward([w.chunk for w in work])
        except Exception:
            # Whatever a model's kernels raise must reach those who wait; a thread that died would leave them waiting for ever.
            log.exception("a forward of %d chunks failed", len(work))
            self._abandon(EngineError("The model failed while it answered; the worker's log says why."), waiting=False)
            return True
        before = self._completion_tokens
        if isinstance(found, list):
            self._take(work, found)
        else:
            self._postprocess(work, found)
        if self._drafter:
            self._drafter.note(self._completion_tokens - before)
        return True

    def _steps_alone(self, work: list[Work]) -> int:
        """So many steps may the runner take by itself; 0 where somebody's prompt, guesses or manner of choosing needs the engine at each."""
        if not self._decodes_alone or not all(chunk.wanted == 1 and s.is_decoding and s.is_plain for s, chunk in work):
            return 0
        with self._changed:
            most = QUEUED_STEPS if self._scheduler.waiting else ALONE_STEPS
            return self._scheduler.hold_ahead(max(1, min(most, int(ALONE_SECONDS / self._step_seconds))))

    def _decode(self, work: list[Work], steps: int) -> list[list[int]]:
        began = self._clock()
        most = [min(steps, sequence.room - sequence.answer_tokens) for sequence, _ in work]
        found = cast(DecodesAlone, self._runner).decode([chunk for _, chunk in work], most, self._is_end)
        self._step_seconds = (self._clock() - began) / max(map(len, found))
        return found

    def _take(self, work: list[Work], found: list[list[int]]) -> None:
        """The tokens that the runner chose; -1 where it could not."""
        self._steps += max(map(len, found))
        for (sequence, _), tokens in zip(work, found, strict=True):
            self._decode_turns += len(tokens)
            sequence.in_cache += len(tokens)
            is_broken = tokens[-1] < 0
            if is_broken:
                tokens.pop()
            if tokens:
                self._advance(sequence, tokens)
            if is_broken:
                self._fail(sequence, EngineError(NOT_FINITE))

    def _with_guesses(self, work: list[Work]) -> list[Work]:
        """A draft is a help only: one that fails is given up, and nobody notices but for the speed."""
        if not self._drafter:
            return work
        try:
            return self._drafter.extend(work)
        except Exception:
            log.exception("the draft failed; the model goes on without it")
            self._drafter.close()
            self._drafter = None
            return work

    def _read(self, work: list[Work]) -> None:
        """Texts whose hidden states are wanted: one after the other, as nobody waits for their next token."""
        for sequence, chunk in work:
            if not sequence.is_read_only:
                continue
            sequence.take_states(cast(ReadsStates, self._runner).hidden_states(chunk))
            self._prompt_tokens += len(chunk.tokens)
            if sequence.finish_reason:
                with self._changed:
                    self._scheduler.remove(sequence)
                self._complete(sequence)

    def _postprocess(self, work: list[Work], logits: Logits) -> None:
        """`logits`: (Σ wanted, vocab). Those whose prompt has been read choose their next tokens; those that end give up their slot."""
        likely = logits.argmax(axis=-1)
        finite = np.isfinite(logits[np.arange(len(logits)), likely])
        self._steps += 1
        row = 0
        for sequence, chunk in work:
            if sequence.in_cache == sequence.reused_tokens and not sequence.preemptions:  # its first chunk
                self._reused_tokens += sequence.reused_tokens
            guesses = list(chunk.tokens[len(chunk.tokens) - chunk.wanted + 1 :])
            sequence.in_cache += len(chunk.tokens) - len(guesses)
            self._prompt_tokens += 0 if chunk.start >= sequence.prompt_tokens else len(chunk.tokens)
            if sequence.in_cache >= len(sequence.tokens):  # else more of the prompt is to be read
                self._choose(sequence, guesses, logits[row:], likely[row:], finite[row:])
            row += chunk.wanted

    def _choose(self, sequence: Sequence, guesses: list[int], logits: Logits, likely: NDArray[np.intp], finite: NDArray[np.bool_]) -> None:
        """The next token, and one more after each guess that is what was chosen. The row after a wrong guess is of no use."""
        self._decode_turns += 1
        self._guessed_tokens += len(guesses)
        for row, guess in enumerate([*guesses, None]):
            if not finite[row]:
                self._fail(sequence, EngineError(NOT_FINITE))
                return
            try:
                token = sequence.choose(logits[row], int(likely[row]))
            except EngineError as error:
                self._fail(sequence, error)
                return
            self._accepted_tokens += token == guess
            self._advance(sequence, [token])
            if token != guess or sequence.finish_reason:
                return
            sequence.in_cache += 1  # the guess has been read

    def _advance(self, sequence: Sequence, tokens: list[int]) -> None:
        piece = sequence.append(tokens, self._end_ids)
        self._completion_tokens += len(tokens)
        if sequence.finish_reason:
            with self._changed:
                self._scheduler.remove(sequence)
        self._tell(sequence, piece)

    def _tell(self, sequence: Sequence, piece: str) -> None:
        try:
            sequence.tell(piece)
            if sequence.finish_reason:
                sequence.complete()
        except Exception as error:
            # The asker's own code: its fault ends its own answer, not everyone's.
            log.exception("on_token failed")
            sequence.ticket.cancel()
            sequence.ticket.resolve(EngineError(f"The answer could not be delivered: {error}"))

    def _complete(self, sequence: Sequence) -> None:
        self._tell(sequence, "")

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        with self._changed:
            self._scheduler.remove(sequence, keep=False)
        sequence.ticket.resolve(error)

    def _abandon(self, error: EngineError, *, waiting: bool = True) -> None:
        with self._changed:
            lost = [*self._scheduler.running, *(self._scheduler.waiting if waiting else ())]
        for sequence in lost:
            self._fail(sequence, error)
