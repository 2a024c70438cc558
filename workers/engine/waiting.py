"""Who waits for a slot, and who is next."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain

from workers.engine.sequence import Sequence


class WaitingLine:
    """Whoever talks before batches; among each, tenants take turns, so that one with a hundred questions delays another's one by one of
    them; a tenant's own are first come, first served."""

    def __init__(self) -> None:
        self._talking: OrderedDict[str, deque[Sequence]] = OrderedDict()  # by tenant, the one whose turn it is first
        self._batches: OrderedDict[str, deque[Sequence]] = OrderedDict()

    def add(self, sequence: Sequence) -> None:
        self._line_of(sequence).setdefault(sequence.tenant, deque()).append(sequence)

    def next(self) -> Sequence:
        """Whose turn it is. StopIteration where nobody waits."""
        return next(iter((self._talking or self._batches).values()))[0]

    def put_back(self, sequence: Sequence) -> None:
        """It had its turn and was interrupted: it is the next."""
        line = self._line_of(sequence)
        line.setdefault(sequence.tenant, deque()).appendleft(sequence)
        line.move_to_end(sequence.tenant, last=False)

    def pop(self) -> Sequence:
        """Take out the next. KeyError where nobody waits."""
        line = self._talking or self._batches
        tenant, theirs = line.popitem(last=False)
        sequence = theirs.popleft()
        if theirs:
            line[tenant] = theirs  # their next turn is after everybody else's
        return sequence

    def remove(self, sequence: Sequence) -> None:
        line = self._line_of(sequence)
        line[sequence.tenant].remove(sequence)
        if not line[sequence.tenant]:
            del line[sequence.tenant]

    def _line_of(self, sequence: Sequence) -> OrderedDict[str, deque[Sequence]]:
        return self._batches if sequence.is_batch else self._talking

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable((*self._talking.values(), *self._batches.values()))

    def __len__(self) -> int:
        return sum(map(len, (*self._talking.values(), *self._batches.values())))
