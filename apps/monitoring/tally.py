"""How long requests were in each phase, and how many were refused, for the charts: summed in the process, and written into the buckets in Redis a
second at a time.

A request has half a dozen phases, and neither an answer from the cache nor a refusal has time for a message about each.
"""

import atexit
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping

import redis

from apps.monitoring import buckets

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0


class Tally:
    """What a process has seen and not written yet; a process that is killed loses the last second of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)  # second, version → counts, as `buckets.count` takes them
        self._writer: threading.Thread | None = None

    def add(self, version: str, counts: Mapping[str, int]) -> None:
        """As `buckets.count` does, a moment later."""
        with self._lock:
            self._waiting[int(time.time()), version].update(counts)
            if self._writer is None:  # with the first request: a command that answers nobody starts no thread
                self._writer = threading.Thread(target=self._keep_writing, name="tally", daemon=True)
                self._writer.start()
                atexit.register(self.write)

    def write(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, defaultdict(Counter)
        for (second, version), counts in waiting.items():
            try:
                buckets.count(version, counts, at=second)
            except redis.RedisError as error:
                log.warning("a second's phases and refusals are missing from the charts: %s", error)

    def _keep_writing(self) -> None:
        while True:
            time.sleep(WRITE_SECONDS)
            self.write()


tally = Tally()
