"""How many questions a web process is at: no more than leave it threads for everything else, and those beyond are told at once when to come back.

Without that, a question would wait unseen for a thread: longer and longer as long as more are asked than can be answered, and all of them too late.
Refusing happens before anything is done for the request, so that it costs a small part of what an answer does.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import translation
from django.utils.translation import gettext as _

from apps.accounts.problems import Busy, body_of
from apps.monitoring import recorder
from apps.serving.openai import error_body

RECENT, RECENT_SECONDS = 64, 10.0  # answers, and how old: their pace tells how long a place takes
_ROUTES = {
    "/api/v1/generate/": "generate",
    "/api/v1/chat/": "chat",
    "/v1/chat/completions": "openai",
    "/v1/completions": "openai",
    "/v1/embeddings": "embeddings",
}


class Door:
    """At most so many inside. May be called from any thread."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
        self.most, self.inside = most, 0
        self._clock, self._lock = clock, threading.Lock()
        self._left: deque[float] = deque(maxlen=RECENT)

    def enter(self) -> bool:
        with self._lock:
            if self.inside >= self.most:
                return False
            self.inside += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1
            self._left.append(self._clock())

    def wait_seconds(self) -> int:
        """Until those who are inside now have left, at the pace of late; at least a second, and no longer than an answer may take."""
        with self._lock:
            now, inside = self._clock(), self.inside
            left = [at for at in self._left if at > now - RECENT_SECONDS]
        longest = math.ceil(settings.ANSWER_TIMEOUT_SECONDS)
        return max(1, min(math.ceil(inside * (now - left[0]) / len(left)), longest)) if left else longest


door = Door(settings.MAX_ASKING)


class DoorMiddleware:
    """The first of all: a refused request goes no further."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        route = _ROUTES.get(request.path) if request.method == "POST" else None
        if route is None:
            return self.get_response(request)
        if not door.enter():
            return _refusal(request, route)
        streams = False
        try:
            response = self.get_response(request)
            streams = response.streaming
        finally:
            if not streams:
                door.leave()
        if streams:
            response.streaming_content = _until_the_end(response.streaming_content)
        return response


def _until_the_end(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        door.leave()


def _refusal(request: HttpRequest, route: str) -> HttpResponse:
    recorder.refuse(version="", route=route, tenant="token" if "Authorization" in request.headers else "user")
    with translation.override(translation.get_language_from_request(request)):
        seconds = door.wait_seconds()
        busy = Busy(
            _("%(n)s answers are being made already; ask again in %(seconds)s s.") % {"n": door.inside, "seconds": seconds},
            retry_after_seconds=seconds,
        )
        if request.path.startswith("/v1/"):
            response = JsonResponse(error_body(busy.status, busy.detail, code="rate_limit_exceeded"), status=busy.status)
        else:
            response = JsonResponse(body_of(busy), status=busy.status, content_type="application/problem+json")
    response["Retry-After"] = str(seconds)
    return response
