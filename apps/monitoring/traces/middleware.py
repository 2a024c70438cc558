"""The first and the last moment of a request that an engine may answer."""

import re
from collections.abc import Iterator

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
        if response.streaming:
            response.streaming_content = _until_the_end(response.streaming_content, journey, response.status_code)
        else:
            journey.end(response.status_code)
        return response


def _until_the_end(pieces: Iterator[bytes], journey: Journey, status: int) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        journey.end(status)
