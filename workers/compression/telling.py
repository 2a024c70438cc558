"""How far a job is: one method's progress, or a part of the policy's."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from workers.protocol import emit


@dataclass(frozen=True)
class _Span:
    begin: float
    end: float
    prefix: str
    seconds_after: float = 0.0


_WHOLE = _Span(0.0, 1.0, "")
_span: ContextVar[_Span] = ContextVar("span")


def tell(progress: float, message: str, eta_seconds: float | None = None) -> None:
    """Emit a progress event; `progress`, 0 to 1, is of the span that is open."""
    span = _span.get(_WHOLE)
    eta = {} if eta_seconds is None else {"eta_seconds": eta_seconds + span.seconds_after}
    emit("progress", progress=span.begin + (span.end - span.begin) * progress, message=span.prefix + message, **eta)


@contextmanager
def span(begin: float, end: float, prefix: str = "", seconds_after: float = 0.0) -> Iterator[None]:
    """What is told inside is from `begin` to `end` of the span that is open, behind its prefix, and so many seconds before what follows ends."""
    outer = _span.get(_WHOLE)
    width = outer.end - outer.begin
    token = _span.set(_Span(outer.begin + width * begin, outer.begin + width * end, outer.prefix + prefix, outer.seconds_after + seconds_after))
    try:
        yield
    finally:
        _span.reset(token)
