"""How far a step over many rows has come."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Row = TypeVar("Row")
Advance = Callable[[float], None]  # told the share that is done, 0 to 1

ROWS_BETWEEN = 1_000


def unheard(share: float) -> None:
    """For whoever does not ask how far a step is."""


def advancing(rows: Sequence[Row], advance: Advance) -> Iterator[Row]:
    """The rows, one by one; `advance` hears the share that is done every thousand rows."""
    for n, row in enumerate(rows):
        if n and n % ROWS_BETWEEN == 0:
            advance(n / len(rows))
        yield row
