"""One request's way through the web process.

Its phases are noted as plain tuples while it runs, and told to OpenTelemetry at its end: a span that runs costs 36 µs, and an answer from the cache has
no time for six of them. A request that goes to an engine gets its root span before, so that the worker's phases find it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest
from opentelemetry.trace import Span

from apps.monitoring import recorder
from apps.monitoring.traces import telling
from apps.monitoring.traces.edge import ARRIVED
from apps.monitoring.traces.store import NOTABLE_MS
from apps.registry.models import ModelVersion


class Phase(NamedTuple):
    name: str
    start: int  # ns since 1970
    end: int
    about: dict[str, str | int | float | bool]


class Journey:
    """`request` is None outside of one, as in a command: then nothing is told."""

    def __init__(self, request: HttpRequest | None = None):
        self.request = request
        now, monotonic = time.time_ns(), time.monotonic()
        self.came: float = request.META.get(ARRIVED, monotonic) if request else monotonic
        self.began = now - round((monotonic - self.came) * 1e9)
        self.phases: list[Phase] = [Phase("turn", self.began, now, {})] if self.began < now else []
        self.answers: list[str] = []  # ids of rows
        self.version = self.version_id = self.route = ""
        self.failure = ""  # what a stream said after its status was sent
        self._span: Span | None = None
        self._observed: list[dict[str, Any]] = []

    @property
    def is_traced(self) -> bool:
        return self.request is not None and settings.TRACES_PER_SECOND > 0

    @property
    def tenant(self) -> str:
        """Who asks, by kind: token, user or guest; none outside of a request."""
        if self.request is None:
            return "none"
        if getattr(self.request, "auth", None):
            return "token"
        return "user" if self.request.user.is_authenticated else "guest"

    def answered(self, answer: str | None, version: ModelVersion, route: str) -> None:
        """By which version, over which way; the id of the row where there is one."""
        self.version, self.version_id, self.route = version.name, version.pk, route
        if answer:
            self.answers.append(answer)

    def observe(self, **observed: Any) -> None:
        """Count an answer (`recorder.observe`) when the request is over, which has taken as long as its asker waited; outside of one, at once."""
        self._observed.append(observed)
        if self.request is None:
            self._count()

    def _count(self) -> None:
        latency_ms, observed, self._observed = (time.monotonic() - self.came) * 1000, self._observed, []
        for each in observed:
            recorder.observe(latency_ms=latency_ms, tenant=self.tenant, **each)

    @contextmanager
    def phase(self, name: str, **about: str | float | bool) -> Iterator[None]:
        start = time.time_ns()
        try:
            yield
        finally:
            self.phases.append(Phase(name, start, time.time_ns(), about))

    def carrier(self) -> dict[str, str]:
        """What a message takes along, so that whoever works on it can tell of it as a part of this request."""
        if not self.is_traced:
            return {}
        if self._span is None:
            self._span = telling.begin(self.began)
        return telling.carrier(self._span)

    def end(self, status: int) -> None:
        """Count its answers and phases, and tell of it: always where an engine was asked, or it was slow or failed; else as many a second as the settings
        allow."""
        self._count()
        seconds = [(phase.name, (phase.end - phase.start) / 1e9) for phase in self.phases]
        recorder.observe_phases(version=self.version_id, route=self.route, tenant=self.tenant, phases=seconds)
        if not self.is_traced:
            return
        end = time.time_ns()
        worth_it = self._span is not None or status >= 400 or self.failure or (end - self.began) / 1e6 > NOTABLE_MS
        if not worth_it and not _allowance.take():
            return
        span = self._span or telling.begin(self.began)
        for phase in self.phases:
            telling.tell(phase.name, phase.start, phase.end, telling.within(span), **phase.about)
        telling.finish(span, end, self.failure, self._facts(status))

    def _facts(self, status: int) -> dict:
        request = self.request
        user = request.user
        return {
            "http.request.method": request.method, "url.path": request.path, "http.response.status_code": status, "user.id": str(user.pk or ""),
            "user.name": user.get_username(), telling.REQUEST_ID: request.request_id, telling.ANSWERS: self.answers, "dsportal.tenant": self.tenant,
            "dsportal.version": self.version,
        }  # fmt: skip


class Allowance:
    """So many a second of one process, none saved up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._second, self._taken = 0, 0

    def take(self) -> bool:
        second = int(self._clock())
        with self._lock:
            if second != self._second:
                self._second, self._taken = second, 0
            self._taken += 1
            return self._taken <= settings.TRACES_PER_SECOND


_allowance = Allowance()
CURRENT: ContextVar[Journey | None] = ContextVar("journey", default=None)


def current() -> Journey:
    """That of the request being answered."""
    return CURRENT.get() or Journey()
