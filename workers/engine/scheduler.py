"""Who waits, who has a slot, and what runs in the next forward. No threads, no clocks: the engine calls it under its lock."""

from typing import NamedTuple

from workers.engine.memory import CacheMemory
from workers.engine.runner import Chunk
from workers.engine.sequence import Sequence
from workers.engine.slots import Emptied, Slots, Taken
from workers.engine.waiting import WaitingLine

HEADROOM_TOKENS = 16  # each of the running may still write so many when another joins: else that one would soon have to leave again


class Work(NamedTuple):
    """A sequence and its part in the next forward."""

    sequence: Sequence
    chunk: Chunk


class Scheduler:
    """Who waits in line, over a fixed number of slots and a budget for their keys and values.

    Where a sequence cannot grow within the budget, slots that nobody uses are emptied, the longest unused first; then sequences leave, batches
    before those who talk, the youngest first, and wait for another turn, in which they read again what they had.

    Each step takes one token of every decoding sequence and at most `prefill_tokens` tokens of prompts: a long prompt is read
    in parts, between which the others go on, and a short one behind it does not wait for all of it to be read.
    """

    def __init__(self, slots: int, prefill_tokens: int, *, may_copy: bool = False, memory: CacheMemory | None = None):
        """`may_copy`: the runner can copy from slot to slot. What `errands` then has must be copied, and emptied, in that order, before the next
        forward. `memory`: without one there is enough for all slots."""
        self._may_copy = may_copy
        self.errands: list[Taken | Emptied] = []
        self.memory = memory or CacheMemory(0, lambda tokens: 0, slots, 0)
        self.preemptions = 0
        self._free = Slots(slots)
        self._prefill_tokens = prefill_tokens
        self.waiting = WaitingLine[Sequence]()
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
        self._let_grow()
        while self.waiting and self._free and (taken := self._room_for(self.waiting.next())):
            sequence = self.waiting.pop()
            self._free.take(taken.slot)
            if taken.source is not None:
                self.errands.append(taken)
            sequence.start(taken.slot, taken.known)
            self.memory.hold(taken.slot, len(sequence.tokens))
            self.running.append(sequence)
        decoding = [Work(s, s.next_chunk(1)) for s in self.running if s.is_decoding]
        return decoding + self._share_prefill([s for s in self.running if not s.is_decoding])

    def hold_ahead(self, tokens: int) -> int:
        """Memory for so many tokens more of each that runs, or for the next alone where that is too much. For how many there is."""
        soon = [(s.slot, len(s.tokens) + min(tokens, s.room - s.answer_tokens) - 1) for s in self.running]
        if self.memory.used_bytes + sum(self.memory.more(slot, length) for slot, length in soon) > self.memory.total_bytes:
            return 1
        for slot, length in soon:
            self.memory.hold(slot, length)
        return tokens

    def _let_grow(self) -> None:
        """Memory for what the running are about to read, the oldest first: alone, each has enough."""
        for sequence in tuple(self.running):
            while sequence.slot >= 0 and not self.memory.fits(sequence.slot, len(sequence.tokens)):
                if not self._empty_one():
                    self._preempt(next((s for s in reversed(self.running) if s.is_batch), self.running[-1]))
            if sequence.slot >= 0:
                self.memory.hold(sequence.slot, len(sequence.tokens))

    def _room_for(self, sequence: Sequence) -> Taken | None:
        """The slot it gets; None while memory is short. One that talks may take a batch's place."""
        while True:
            taken = self._free.choose(sequence.tokens, may_copy=self._may_copy) if sequence.may_reuse else self._free.choose_any()
            soon = sum(self.memory.more(other.slot, len(other.tokens) + HEADROOM_TOKENS) for other in self.running)
            if self.memory.used_bytes + self.memory.more(taken.slot, len(sequence.tokens)) + soon <= self.memory.total_bytes:
                return taken
            useful = taken.slot if taken.source is None else taken.source
            if self._empty_one(but=useful if taken.known else None) or self._empty_one():
                continue
            batch = next((s for s in reversed(self.running) if s.is_batch), None)
            if batch is None or sequence.is_batch:
                return None
            self._preempt(batch)

    def _empty_one(self, but: int | None = None) -> bool:
        """Empty the slot that was not used for the longest time. False where none holds anything."""
        slot = next((slot for slot in self._free if self.memory.holds(slot) and slot != but), None)
        if slot is None:
            return False
        self._free.forget(slot)
        self.memory.empty(slot)
        self.errands.append(Emptied(slot))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.remove(sequence)
        sequence.interrupt()
        self.waiting.put_back(sequence)

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
        for sequence in sorted(reading[1:], key=lambda s: s.to_read - s.in_cache):
            if not left:
                break
            chunk = sequence.next_chunk(left)
            left -= len(chunk.tokens)
            parts.append(Work(sequence, chunk))
        return [Work(oldest, oldest.next_chunk(len(first.tokens) + left)), *parts]
