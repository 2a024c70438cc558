"""A web process takes in no more questions than leave it threads for everything else, and tells those beyond at once when to come back.

Without that, a question would wait unseen for a thread: longer and longer as long as more are asked than can be answered, and all of them too late.
Refusing happens before anything is done for the request, so that it costs a small part of what an answer does.
"""

from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse
from django.utils import translation
from django.utils.translation import gettext as _

from apps.accounts.problems import Busy, plain_refusal
from apps.monitoring import recorder
from apps.serving.room import room
from apps.serving.turns import turns

_ROUTES = {
    "/api/v1/generate/": "generate",
    "/api/v1/chat/": "chat",
    "/v1/chat/completions": "openai",
    "/v1/completions": "openai",
    "/v1/embeddings": "embeddings",
}


class DoorMiddleware:
    """The first after the request has its id: a refused one goes no further."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        route = _ROUTES.get(request.path) if request.method == "POST" else None
        if route is None:
            return self.get_response(request)
        if (came := room.enter()) is None:
            return _refusal(request, route)
        streams = False
        try:
            with turns.taken():
                response = self.get_response(request)
            streams = response.streaming
        finally:
            if not streams:
                room.leave(came)
        if streams:
            response.streaming_content = _until_the_end(response.streaming_content, came)
        return response


def _until_the_end(pieces: Iterator[bytes], came: float) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        room.leave(came)


def _refusal(request: HttpRequest, route: str) -> HttpResponse:
    recorder.refuse(version="", route=route, tenant="token" if "Authorization" in request.headers else "user")
    with translation.override(translation.get_language_from_request(request)):
        seconds = room.wait_seconds()
        busy = Busy(
            _("%(n)s answers are being made already; ask again in %(seconds)s s.") % {"n": room.inside, "seconds": seconds},
            retry_after_seconds=seconds,
        )
        response = plain_refusal(request, busy.status, str(busy.title), busy.detail, reason="rate_limit_exceeded")
    response["Retry-After"] = str(seconds)
    return response
