"""The answer cache's first tier: in the web process itself, in front of the one in Redis that all of them share.

It holds for as long as the epoch does, so that a promotion empties every process's at once. An entry is asked for again in Redis every few
seconds, so that it counts there as used.
"""

import threading
import time
from collections import OrderedDict
from typing import NamedTuple

REFRESH_SECONDS = 10.0


class Kept(NamedTuple):
    text: str  # JSON
    until: float  # of `time.monotonic`


class NearCache:
    """The least recently used go when there are more than so many bytes. May be called from any thread."""

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._epoch: str | None = None
        self._bytes = 0

    def get(self, key: str, epoch: str | None) -> str | None:
        with self._lock:
            if not self._holds(epoch) or (kept := self._kept.get(key)) is None:
                return None
            if kept.until < time.monotonic():
                self._drop(key)
                return None
            self._kept.move_to_end(key)
            return kept.text

    def put(self, key: str, text: str, epoch: str | None) -> None:
        """`epoch`: as it was before the answer was looked for."""
        with self._lock:
            if not self._holds(epoch) or len(text) > self._most_bytes // 8:
                return
            if key in self._kept:
                self._drop(key)
            self._kept[key] = Kept(text, time.monotonic() + REFRESH_SECONDS)
            self._bytes += _size(key, text)
            while self._bytes > self._most_bytes:
                self._drop(next(iter(self._kept)))

    @property
    def bytes(self) -> int:
        return self._bytes

    def _holds(self, epoch: str | None) -> bool:
        """What is kept is of this epoch; of another one, it is forgotten."""
        if epoch != self._epoch:
            self._kept.clear()
            self._bytes, self._epoch = 0, epoch
        return epoch is not None

    def _drop(self, key: str) -> None:
        self._bytes -= _size(key, self._kept.pop(key).text)


def _size(key: str, text: str) -> int:
    return len(key) + 4 * len(text)  # a character takes up to four bytes
