"""Questions of a web process are worked on in turns, by a few threads at a time; those that wait for an engine need none.

An answer from the cache is a short message to Redis and less than a millisecond of Python, which one thread runs at a time whatever their number. With all
48 at once each message ends in a wait for the interpreter among all the others, and switching between them takes an eighth of an answer's time
(benchmarks/cached.py). So the others wait here, where they cost nothing, and come to their turns in the order in which they came: a thread that could go
again at once would otherwise do so before one that has to be woken first, and the unlucky wait ten times as long as the rest.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

AT_ONCE = 4  # one computes while the others' messages are on their way


class Turns:
    """May be called from any thread."""

    def __init__(self, at_once: int):
        self._lock = threading.Lock()
        self._free = at_once
        self._waiting: deque[threading.Lock] = deque()  # the oldest first; each is released when its thread has a turn
        self._mine = threading.local()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a turn of this thread's, and have it until the end or `give_up`."""
        with self._lock:
            if self._free:
                self._free -= 1
                mine = None
            else:
                mine = threading.Lock()
                mine.acquire()
                self._waiting.append(mine)
        if mine:
            mine.acquire()
        self._mine.has_one = True
        try:
            yield
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Before a long wait. A thread that has no turn gives nothing up."""
        if not getattr(self._mine, "has_one", False):
            return
        self._mine.has_one = False
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


turns = Turns(AT_ONCE)
