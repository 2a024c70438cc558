"""Who waits for a slot, and who is next."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    tenant: str
    is_batch: bool


T = TypeVar("T", bound=Waiting)


class WaitingLine(Generic[T]):
    """Whoever talks before batches; among each, tenants take turns, so that one with a hundred questions delays another's one by one of
    them; a tenant's own are first come, first served."""

    def __init__(self) -> None:
        self._talking: OrderedDict[str, deque[T]] = OrderedDict()  # by tenant, the one whose turn it is first
        self._batches: OrderedDict[str, deque[T]] = OrderedDict()

    def add(self, sequence: T) -> None:
        self._line_of(sequence).setdefault(sequence.tenant, deque()).append(sequence)

    def next(self) -> T:
        """Whose turn it is. StopIteration where nobody waits."""
        return next(iter((self._talking or self._batches).values()))[0]

    def put_back(self, sequence: T) -> None:
        """It had its turn and was interrupted: it is the next."""
        line = self._line_of(sequence)
        line.setdefault(sequence.tenant, deque()).appendleft(sequence)
        line.move_to_end(sequence.tenant, last=False)

    def pop(self) -> T:
        """Take out the next. KeyError where nobody waits."""
        line = self._talking or self._batches
        tenant, theirs = line.popitem(last=False)
        sequence = theirs.popleft()
        if theirs:
            line[tenant] = theirs  # their next turn is after everybody else's
        return sequence

    def remove(self, sequence: T) -> None:
        line = self._line_of(sequence)
        line[sequence.tenant].remove(sequence)
        if not line[sequence.tenant]:
            del line[sequence.tenant]

    def _line_of(self, sequence: T) -> OrderedDict[str, deque[T]]:
        return self._batches if sequence.is_batch else self._talking

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable((*self._talking.values(), *self._batches.values()))

    def __len__(self) -> int:
        return sum(map(len, (*self._talking.values(), *self._batches.values())))
