"""Askers who went away. Their word comes at once, by Redis' pub/sub, to one thread of the process; nothing asks Redis step by step."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis import RedisError

from apps.monitoring import names
from apps.redis import connection

log = logging.getLogger(__name__)

LISTEN_SECONDS = 5.0  # within the connection's own limit
RECONNECT_SECONDS = 0.2


class Cancellations:
    """Tickets by the answers they are for."""

    def __init__(self) -> None:
        self._tickets: dict[str, object] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def heard(self, answer: str, ticket) -> Iterator[None]:
        """Within it the ticket is cancelled as soon as the asker has gone, or went before."""
        with self._lock:
            self._tickets[answer] = ticket
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="cancellations", daemon=True)
                self._thread.start()
        try:
            self._look([(answer, ticket)])  # it may have gone before the ticket was here; later ones are heard
            yield
        finally:
            with self._lock:
                self._tickets.pop(answer, None)

    def _look(self, tickets: list) -> None:
        """For what was said while nobody listened."""
        gone = connection().mget([names.CANCEL.format(answer=answer) for answer, _ in tickets]) if tickets else []
        for (_, ticket), is_gone in zip(tickets, gone, strict=True):
            if is_gone:
                ticket.cancel()

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
                known = list(self._tickets.items())
            self._look(known)
        elif message and message["type"] == "message":
            with self._lock:
                ticket = self._tickets.get(message["data"])
            if ticket:
                ticket.cancel()


cancellations = Cancellations()
