"""Where the web server hands requests over, and takes answers back."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from django.core.handlers.wsgi import WSGIHandler

ARRIVED = "dsportal.arrived"  # in a WSGI environment, and so in `request.META`: when that was, of `time.monotonic`


class Edge:
    """Notes when a request arrived, before anything has been done for it: it may wait for its turn yet (apps/serving/turns.py).

    An answer that is whole goes back as a list, which granian sends at once. Anything else it iterates, and waits for the interpreter after each piece, among
    all its threads.
    """

    def __init__(self, application: WSGIHandler):
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ[ARRIVED] = time.monotonic()
        response = self._application(environ, start_response)
        if response.streaming:
            return response
        try:
            return list(response)
        finally:
            response.close()
