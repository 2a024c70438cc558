"""Questions of a web process are worked on in turns, by a few threads at a time; those that wait for an engine need none.

An answer from the cache is two short messages to Redis and a millisecond of Python, which one thread runs at a time whatever their number. With all 48 at
once each message ends in a wait for the interpreter among all the others, and switching between them takes an eighth of an answer's time
(benchmarks/cached.py). So the others wait here, where they cost nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

AT_ONCE = 4  # one computes while the others' messages are on their way


class Turns:
    """May be called from any thread."""

    def __init__(self, at_once: int):
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(at_once):
            self._free.put(None)
        self._mine = threading.local()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a turn of this thread's, and have it until the end or `give_up`."""
        self._free.get()
        self._mine.has_one = True
        try:
            yield
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Before a long wait. A thread that has no turn gives nothing up."""
        if getattr(self._mine, "has_one", False):
            self._mine.has_one = False
            self._free.put(None)


turns = Turns(AT_ONCE)
