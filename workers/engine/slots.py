"""Which slots are free, and what each of them still knows.

A conversation's next turn begins with its earlier ones: where their keys and values are still in a slot, they need not be computed
again. So a slot keeps what it holds until somebody needs it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

LEAST_SHARED = 8  # tokens; fewer are computed as quickly as looked for, and every conversation begins with some


class Taken(NamedTuple):
    """`known`: so many of the first tokens are in the slot, or will be once they are copied from `source`."""

    slot: int
    known: int
    source: int | None = None


class Emptied(NamedTuple):
    """A slot that holds nothing any more, and whose memory can be given back."""

    slot: int


class Slots:
    """The free ones, the least recently used first, with the tokens whose keys and values they hold."""

    def __init__(self, count: int):
        self._free: dict[int, Sequence[int]] = dict.fromkeys(range(count), ())

    def __bool__(self) -> bool:
        return bool(self._free)

    def choose(self, tokens: Sequence[int], *, may_copy: bool) -> Taken:
        """The slot for `tokens`; it stays free until it is taken. Of what it holds never all is used, as the last one's logits are needed.
        KeyError where none is free.

        A slot of which less than half would be used is another conversation's, which may go on: then the one that was not used for the
        longest time is chosen, and what is the same (a system prompt, say) is copied where `may_copy`.
        """
        shared = {slot: _common(held, tokens) for slot, held in self._free.items()}
        best = max(shared, key=lambda slot: shared[slot])
        if shared[best] >= max(LEAST_SHARED, len(self._free[best]) / 2):
            return Taken(best, min(shared[best], len(tokens) - 1))
        source, known = best, min(shared[best], len(tokens) - 1)
        slot = self.choose_any().slot
        if slot == source or not may_copy or known < LEAST_SHARED:
            return Taken(slot, known if slot == source and known >= LEAST_SHARED else 0)
        return Taken(slot, known, source)

    def choose_any(self) -> Taken:
        """The one that was not used for the longest time."""
        return Taken(next(iter(self._free)), 0)

    def take(self, slot: int) -> None:
        del self._free[slot]

    def __iter__(self) -> Iterator[int]:
        """The least recently used first."""
        return iter(tuple(self._free))

    def forget(self, slot: int) -> None:
        """What a free slot holds is there no longer."""
        self._free[slot] = ()

    def give_back(self, slot: int, held: Sequence[int]) -> None:
        self._free[slot] = held


def _common(held: Sequence[int], tokens: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(held, tokens, strict=False)):
        if one != other:
            return index
    return min(len(held), len(tokens))
