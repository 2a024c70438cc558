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
from apps.serving.turns import turns

RECENT = 32  # questions that have left: how long they were inside tells when those who are now will have
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
        self._stays: deque[float] = deque(maxlen=RECENT)  # seconds

    def enter(self) -> float | None:
        """When it came in, to be told when it leaves. None where there is no room."""
        with self._lock:
            if self.inside >= self.most:
                return None
            self.inside += 1
            return self._clock()

    def leave(self, came: float) -> None:
        with self._lock:
            self.inside -= 1
            self._stays.append(self._clock() - came)

    def wait_seconds(self) -> int:
        """Until those who are inside now have left, if they stay as long as the last ones did. At least a second, and no longer than an answer may take."""
        with self._lock:
            stay = sum(self._stays) / len(self._stays) if self._stays else math.inf
        return max(1, math.ceil(min(stay, settings.ANSWER_TIMEOUT_SECONDS)))


door = Door(settings.MAX_ASKING)


class DoorMiddleware:
    """The first after the request has its id: a refused one goes no further."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        route = _ROUTES.get(request.path) if request.method == "POST" else None
        if route is None:
            return self.get_response(request)
        if (came := door.enter()) is None:
            return _refusal(request, route)
        streams = False
        try:
            with turns.taken():
                response = self.get_response(request)
            streams = response.streaming
        finally:
            if not streams:
                door.leave(came)
        if streams:
            response.streaming_content = _until_the_end(response.streaming_content, came)
        return response


def _until_the_end(pieces: Iterator[bytes], came: float) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        door.leave(came)


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
