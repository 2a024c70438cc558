"""What the engines of an `inference` worker say goes to Redis from one thread, that of many answers in one transaction.

The worker's threads share Python's interpreter with the engine's: a thread and a message for each answer take it from the engine more often than its
own steps do (benchmarks/whole_stack.py).
"""

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from django.conf import settings
from redis import RedisError

from apps.redis import connection
from apps.serving.line import Window
from workers.tasks.making import Making

log = logging.getLogger(__name__)

MESSAGE_SECONDS = 0.05  # between two messages of an answer: each costs this process, Redis and the web as much as some tokens do
GATHER_SECONDS = 0.005  # between two transactions: what is said meanwhile goes with the next
RECONNECT_SECONDS = 0.2
STREAM_EXPIRES_SECONDS = 120


class Telling:
    """`told`: called with each answer once its end is in Redis, by the same transaction by which it leaves the line."""

    def __init__(self, window: Window, told: Callable[[Making], None]):
        self._window, self._told = window, told
        self._spoken: SimpleQueue[Making | None] = SimpleQueue()
        self._later: dict[Making, float] = {}  # those that have told something a moment ago → when more of them may be told
        self._thread = threading.Thread(target=self._run, name="telling", daemon=True)
        self._thread.start()

    def hear(self, making: Making) -> None:
        """It has something to tell. May be called from any thread."""
        self._spoken.put(making)

    def close(self) -> None:
        """Once what was said is told."""
        self._spoken.put(None)
        self._thread.join()

    def _run(self) -> None:
        last = 0.0
        while (now := self._gathered(last)) is not None:
            ready = [making for making, due in self._later.items() if making.is_over or due <= now]
            for making in ready:
                del self._later[making]
            if ready:
                self._tell(ready)
                last = time.monotonic()

    def _gathered(self, last: float) -> float | None:
        """Wait until something may be told, and take all that has spoken. The time; None at the end."""
        patience = max(0.0, min(self._later.values()) - time.monotonic()) if self._later else None
        try:
            spoken = [self._spoken.get(timeout=patience)]
        except Empty:
            spoken = []
        if (early := last + GATHER_SECONDS - time.monotonic()) > 0:
            time.sleep(early)
        while not self._spoken.empty():
            spoken.append(self._spoken.get())
        if None in spoken:
            return None
        self._later |= {making: making.due for making in spoken if making}
        return time.monotonic()

    def _tell(self, ready: list[Making]) -> None:
        entries = [(making, entry) for making in ready if (entry := making.next_entry()) is not None]
        over = [making for making, _ in entries if making.is_told]
        while True:
            try:
                self._write(entries, [number for making in over for number in making.numbers])
                break
            except RedisError as error:  # what is written twice is numbered: its reader skips what it has
                log.warning("%d answers wait for Redis: %s", len(entries), error)
                time.sleep(RECONNECT_SECONDS)
        due = time.monotonic() + MESSAGE_SECONDS
        for making, _ in entries:
            making.due = due
        for making in over:
            self._told(making)

    def _write(self, entries: list[tuple[Making, dict]], answered: list[str]) -> None:
        expires = STREAM_EXPIRES_SECONDS + round(settings.ANSWER_TIMEOUT_SECONDS)
        pipe = connection().pipeline()
        for making, entry in entries:
            if entry:
                pipe.xadd(making.stream, entry)
            if entry and (making.is_told or not entry["at"]):
                pipe.expire(making.stream, expires)
        if answered:
            self._window.done(pipe, answered)
        pipe.execute()
