"""Askers who went away. Their word comes at once, by Redis' pub/sub, to one thread of the process; nothing asks Redis step by step."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from redis import RedisError

from apps.monitoring import names
from apps.redis import connection

log = logging.getLogger(__name__)

LISTEN_SECONDS = 5.0  # within the connection's own limit
RECONNECT_SECONDS = 0.2


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Cancellations:
    """Answers that are being made, by their ids."""

    def __init__(self) -> None:
        self._heard: dict[str, Cancellable] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, makings: Mapping[str, Cancellable]) -> None:
        """From now on each is cancelled as soon as its asker goes; here and now where that is gone already."""
        with self._lock:
            self._heard |= makings
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="cancellations", daemon=True)
                self._thread.start()
        self._look(makings)

    def remove(self, answer: str) -> None:
        with self._lock:
            self._heard.pop(answer, None)

    def _look(self, makings: Mapping[str, Cancellable]) -> None:
        """For what was said while nobody listened."""
        gone = connection().mget([names.CANCEL.format(answer=answer) for answer in makings]) if makings else []
        for making, is_gone in zip(makings.values(), gone, strict=True):
            if is_gone:
                making.cancel()

    def close(self) -> None:
        """The worker ends: nobody is listened to any more."""
        self._closed = True

    def _listen(self) -> None:
        while not self._closed:
            try:
                with connection().pubsub() as channel:
                    channel.subscribe(names.CANCELLED)
                    while not self._closed:
                        self._hear(channel.get_message(timeout=LISTEN_SECONDS))
            except RedisError as error:
                if self._closed:
                    return
                log.warning("those who go away cannot be heard: %s", error)
                time.sleep(RECONNECT_SECONDS)

    def _hear(self, message: dict | None) -> None:
        if message and message["type"] == "subscribe":  # the first time, and after a lost connection
            with self._lock:
                known = dict(self._heard)
            self._look(known)
        elif message and message["type"] == "message":
            with self._lock:
                making = self._heard.get(message["data"])
            if making:
                making.cancel()


cancellations = Cancellations()
