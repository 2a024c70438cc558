"""The first and the last moment of a request that an engine may answer."""

import re
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from apps.monitoring.traces.journey import CURRENT, Journey

_FOLLOWED = re.compile(r"/v1/(chat/)?completions|/v1/embeddings|/api/v1/(generate|chat)/|/chat/([0-9A-Za-z]+/)?")


class JourneyMiddleware:
    """Behind the one that gives the request its id."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST" or not _FOLLOWED.fullmatch(request.path):
            return self.get_response(request)
        journey = Journey(request)
        token = CURRENT.set(journey)
        try:
            response = self.get_response(request)
        finally:
            CURRENT.reset(token)
        _when_closed(response, lambda: journey.end(response.status_code))
        return response


def _when_closed(response: HttpResponse, then: Callable[[], None]) -> None:
    """The web server closes a response once it has all of it. Django's own signal of that does not say which it was."""
    close = response.close

    def closing() -> None:
        is_first = not response.closed
        close()
        if is_first:
            then()

    response.close = closing
