"""Speculative decoding (Leviathan et al. 2023, Chen et al. 2023): a small draft guesses the next tokens, and the model reads the guesses in one forward.

The model chooses each token from its own logits, as without a draft; a guess that is the token it chose has been read already, and the first that is
not ends the step. So the text is the same token by token, drawn or greedy, whatever the draft says (docs/decisions/speculative-decoding.md).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.engine.depth import Depth
from workers.engine.runner import Chunk, Runner
from workers.engine.scheduler import Work
from workers.engine.sequence import Sequence

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """What the draft has read for a sequence."""

    sequence: Sequence | None = None
    held: list[int] = field(default_factory=list)  # tokens, guesses among them
    same: int = 0  # of them, so many of the first are known to be the sequence's

    def missing(self, sequence: Sequence) -> list[int]:
        """The sequence's tokens that are not held, never none: the last one's logits are needed. What is not the sequence's is forgotten."""
        if self.sequence is not sequence:
            self.sequence, self.same = sequence, 0
            if not sequence.may_reuse:
                self.held.clear()
        most = min(len(self.held), len(sequence.tokens) - 1)
        while self.same < most and self.held[self.same] == sequence.tokens[self.same]:
            self.same += 1
        self.same = min(self.same, most)
        del self.held[self.same :]
        return sequence.tokens[self.same :]

    def read(self, slot: int, tokens: list[int]) -> Chunk:
        chunk = Chunk(slot, len(self.held), tokens)
        self.held += tokens
        return chunk


class Drafter:
    """Guesses for the sequences that decode. It has a slot for each of the model's. Only the engine's thread touches it."""

    def __init__(self, runner: Runner, *, read_tokens: int, clock: Callable[[], float]):
        """`read_tokens`: most tokens of prompts that the draft reads before a step, so that nobody waits for a long one. `clock`: seconds, by which
        steps are compared."""
        self._runner = runner
        self._read_tokens, self._clock = read_tokens, clock
        self._slots = [_Slot() for _ in range(runner.max_batch)]
        self._depth = Depth()
        self._began = 0.0
        self._decoding = 0  # sequences of this step; 0 where it is not measured
        runner.forward([Chunk(0, 0, [0])])  # so that what is compiled at first use is not taken for the draft's time

    def extend(self, work: list[Work]) -> list[Work]:
        """`work` with guesses after the token of each sequence that decodes, as many as pay."""
        self._began = self._clock()
        decoding = [w.sequence for w in work if w.sequence.is_decoding]
        # What reading others' prompts takes says nothing of guesses.
        self._decoding = len(decoding) if len(decoding) == len(work) else 0
        depth = self._depth.now(len(decoding)) if decoding else 0
        wanted = [(s, most) for s in decoding if (most := self._most(s, depth)) > 0]
        if depth and not wanted:  # nobody who may guess: that says nothing either
            self._decoding = 0
        guesses = self._guess(wanted)
        return [self._extended(w, guesses.get(w.sequence.slot, [])) for w in work]

    @staticmethod
    def _extended(work: Work, guesses: list[int]) -> Work:
        if not guesses or not work.sequence.is_decoding:
            return work
        return Work(work.sequence, work.chunk._replace(tokens=[*work.chunk.tokens, *guesses], wanted=1 + len(guesses)))

    def _most(self, sequence: Sequence, depth: int) -> int:
        """A step gives one token more than are guessed right: neither the answer's room nor the draft's is exceeded."""
        room = min(sequence.room - sequence.answer_tokens - 1, self._runner.max_seq_len - len(sequence.tokens))
        return min(depth, room) if sequence.may_guess else 0

    def _guess(self, wanted: list[tuple[Sequence, int]]) -> dict[int, list[int]]:
        """Slot → guesses. A sequence that the draft has not caught up with has none yet."""
        left, reading, chunks = self._read_tokens, [], []
        for sequence, most in wanted:
            slot = self._slots[sequence.slot]
            missing = slot.missing(sequence)
            part = missing[: max(left, 1)]
            left -= len(part) if len(part) > 2 else 0  # 1 or 2 are what the last step gave
            chunks.append(slot.read(sequence.slot, part))
            reading.append((sequence, most if len(part) == len(missing) else 0))
        guesses: dict[int, list[int]] = {sequence.slot: [] for sequence, _ in wanted}
        while chunks:
            logits = self._runner.forward(chunks)
            going, chunks = reading, []
            reading = []
            for row, (sequence, most) in enumerate(going):
                found = guesses[sequence.slot]
                if len(found) < most:
                    found.append(sequence.guess(logits[row], len(found)))
                if len(found) < most:
                    reading.append((sequence, most))
                    chunks.append(self._slots[sequence.slot].read(sequence.slot, found[-1:]))
        return guesses

    def empty(self, slot: int) -> None:
        """Forget what the slot holds, and give its memory back where the draft's runner can."""
        self._slots[slot] = _Slot()
        if hasattr(self._runner, "empty"):
            self._runner.empty(slot)

    def note(self, tokens: int) -> None:
        """The step that `extend` began is over, and gave `tokens`."""
        if self._decoding:
            self._depth.note(self._decoding, self._clock() - self._began, tokens)

    def close(self) -> None:
        self._runner.close()
