"""What a process has seen of requests, for the charts: summed up here, and written into the buckets in Redis a second at a time.

A request is over when its answer has left, and half a dozen phases are known of it by then: nobody should wait for a message about each.
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
        self._lock, self._writing = threading.Lock(), threading.Lock()
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
        """Returns when all that was added before is in the buckets."""
        with self._writing:
            with self._lock:
                waiting, self._waiting = self._waiting, defaultdict(Counter)
            for (second, version), counts in waiting.items():
                try:
                    buckets.count(version, counts, at=second)
                except redis.RedisError as error:  # an answer is worth more than its dot in a chart
                    log.warning("a second's requests are missing from the charts: %s", error)

    def _keep_writing(self) -> None:
        while True:
            time.sleep(WRITE_SECONDS)
            self.write()


tally = Tally()
