"""Who waits, who has a slot, and what runs in the next forward. No threads, no clocks: the engine calls it under its lock."""

from typing import NamedTuple

from workers.engine.runner import Chunk
from workers.engine.sequence import Sequence
from workers.engine.slots import Slots, Taken
from workers.engine.waiting import WaitingLine


class Work(NamedTuple):
    """A sequence and its part in the next forward."""

    sequence: Sequence
    chunk: Chunk


class Scheduler:
    """Who waits in line, over a fixed number of slots.

    Each step takes one token of every decoding sequence and at most `prefill_tokens` tokens of prompts: a long prompt is read
    in parts, between which the others go on, and a short one behind it does not wait for all of it to be read.
    """

    def __init__(self, slots: int, prefill_tokens: int, *, may_copy: bool = False):
        """`may_copy`: the runner can copy from slot to slot; what `copies` then has must be copied before the next forward."""
        self._may_copy = may_copy
        self.copies: list[Taken] = []
        self._free = Slots(slots)
        self._prefill_tokens = prefill_tokens
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)

    def remove_cancelled(self, now: float) -> list[Sequence]:
        """Take out, and return, those whose asker has gone away, or whose time is up: `now` is after their deadline."""
        gone = [s for s in (*self.running, *self.waiting) if s.ticket.is_cancelled or now > s.deadline]
        for sequence in gone:
            self.remove(sequence)
        return gone

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """`keep`: its slot remembers what was read, for whoever goes on from there."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._free.give_back(sequence.slot, sequence.known() if keep else ())

    def schedule(self) -> list[Work]:
        """Admit who waits into the free slots, and share out the next forward. Empty where nothing is to be done."""
        while self.waiting and self._free:
            sequence = self.waiting.pop()
            taken = self._free.take(sequence.tokens, may_copy=self._may_copy) if sequence.may_reuse else self._free.take_any()
            if taken.source is not None:
                self.copies.append(taken)
            sequence.start(taken.slot, taken.known)
            self.running.append(sequence)
        decoding = [Work(s, s.next_chunk(1)) for s in self.running if s.is_decoding]
        return decoding + self._share_prefill([s for s in self.running if not s.is_decoding])

    def _share_prefill(self, reading: list[Sequence]) -> list[Work]:
        """Prompts by what is left of them, the shortest first, so that a question never waits for a long document to be read.

        The oldest of all has a quarter of the tokens for itself: it goes on however many short ones come.
        """
        if not reading:
            return []
        oldest = reading[0]
        first = oldest.next_chunk(max(1, self._prefill_tokens // 4))
        left = self._prefill_tokens - len(first.tokens)
        parts: list[Work] = []
        for sequence in sorted(reading[1:], key=lambda s: s.prompt_tokens - s.in_cache):
            if not left:
                break
            chunk = sequence.next_chunk(left)
            left -= len(chunk.tokens)
            parts.append(Work(sequence, chunk))
        return [Work(oldest, oldest.next_chunk(len(first.tokens) + left)), *parts]
