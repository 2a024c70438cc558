"""Server-sent events."""

import json
from collections.abc import Iterator

from django.http import StreamingHttpResponse

HEARTBEAT = b": still here\n\n"


def event(data: dict | str, *, id: int | str | None = None, name: str | None = None) -> bytes:
    """One event; `data` is JSON unless it is text already."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {name}\n" if name else "")
    return f"{head}data: {text}\n\n".encode()


def event_stream(events: Iterator[bytes]) -> StreamingHttpResponse:
    """The web server closes `events` when the client goes away."""
    response = StreamingHttpResponse(events, content_type="text/event-stream; charset=utf-8")
    response["Cache-Control"] = "no-cache, no-transform"
    response["X-Accel-Buffering"] = "no"  # or nginx keeps the pieces until they fill a page
    return response
