"""How many questions this web process is at, and how many it may be at.

The portal as a whole is at no more than `MAX_IN_FLIGHT` (`apps.serving.flight`), and a process alone may be at all of those: who keeps connections open
may have come while it was the only one. It cannot see the others' questions. But it hears of a full portal by a refusal, and for a while from then on takes
no more than its share, so that those beyond it are refused before anything is done for them.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from django.conf import settings

RECENT = 32  # questions that have left: how long they were inside tells when those who are now will have
FULL_SECONDS = 2.0  # so long after a refusal the portal is taken for full


class Room:
    """For `most` questions at once, for `share` while the portal is full. May be called from any thread."""

    def __init__(self, most: int, share: int, clock: Callable[[], float] = time.monotonic):
        self.most, self.share, self.inside = most, share, 0
        self._clock, self._lock = clock, threading.Lock()
        self._full_until = -math.inf
        self._stays: deque[float] = deque(maxlen=RECENT)  # seconds

    def enter(self) -> float | None:
        """When it came in, to be told when it leaves. None where there is no room."""
        with self._lock:
            now = self._clock()
            if self.inside >= (self.share if now < self._full_until else self.most):
                return None
            self.inside += 1
            return now

    def leave(self, came: float) -> None:
        with self._lock:
            self.inside -= 1
            self._stays.append(self._clock() - came)

    def portal_is_full(self) -> None:
        with self._lock:
            self._full_until = self._clock() + FULL_SECONDS

    def wait_seconds(self) -> int:
        """Until those who are inside now have left, if they stay as long as the last ones did. At least a second, and no longer than an answer may take."""
        with self._lock:
            stay = sum(self._stays) / len(self._stays) if self._stays else math.inf
        return max(1, math.ceil(min(stay, settings.ANSWER_TIMEOUT_SECONDS)))


room = Room(settings.WEB_THREADS - settings.SPARE_THREADS, settings.MAX_ASKING)
