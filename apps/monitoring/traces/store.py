"""Traces in Redis: bounded in time and in number. Those that were slow or failed have room of their own, so that many quick ones do not push
them out."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import redis
from django.conf import settings
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode, format_trace_id

from apps.monitoring import names
from apps.redis import connection

log = logging.getLogger(__name__)

REQUEST = "request"  # the name of a root span
NOTABLE_MS = 500.0  # of a request that is always told, and kept apart from the quick ones
MINE_KEPT = 1000  # traces of one person in the index of their own
READ_AT_ONCE = 200


@dataclass(frozen=True)
class Step:
    """One span. Times in ns since 1970."""

    name: str
    start: int
    end: int
    about: dict = field(default_factory=dict)
    failed: bool = False
    failure: str = ""

    @property
    def milliseconds(self) -> float:
        return (self.end - self.start) / 1e6


@dataclass(frozen=True)
class Trace:
    id: str
    root: Step | None  # not there yet, or lost with its process
    steps: list[Step]  # in the order in which they began

    @property
    def owner(self) -> str:
        """Primary key of the user who asked, as text; empty for a guest."""
        return self.root.about.get("user.id", "") if self.root else ""


class RedisExporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            _write(spans)
        except redis.RedisError as error:  # a request is worth more than its picture
            log.warning("%d spans are missing from the traces: %s", len(spans), error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


def _write(spans: Sequence[ReadableSpan]) -> None:
    kept = settings.TRACE_SECONDS
    by_trace: dict[str, list[ReadableSpan]] = defaultdict(list)
    for span in spans:
        by_trace[format_trace_id(span.context.trace_id)].append(span)
    pipe = connection().pipeline(transaction=False)
    for trace, members in by_trace.items():
        key = names.TRACE.format(trace=trace)
        pipe.rpush(key, *map(_told, members))
        pipe.expire(key, kept)
        for span in members:
            if span.name == REQUEST:
                _index(pipe, trace, span, kept)
    pipe.execute()
    _make_room()


def _told(span: ReadableSpan) -> str:
    step = {"n": span.name, "s": span.start_time, "e": span.end_time, "a": dict(span.attributes or {})}
    if span.status.status_code is StatusCode.ERROR:
        step["f"] = span.status.description or ""
    return json.dumps(step, ensure_ascii=False, default=list)


def _index(pipe: redis.client.Pipeline, trace: str, span: ReadableSpan, kept: int) -> None:
    about, at = span.attributes, span.start_time // 1000  # µs: whole in a double
    notable = span.status.status_code is StatusCode.ERROR or (span.end_time - span.start_time) / 1e6 > NOTABLE_MS
    pipe.zadd(names.TRACES_NOTABLE if notable else names.TRACES, {trace: at})
    if owner := about.get("user.id"):
        mine = names.TRACES_OF.format(user=owner)
        pipe.zadd(mine, {trace: at})
        pipe.zremrangebyrank(mine, 0, -MINE_KEPT - 1)
        pipe.expire(mine, kept)
    for name in (about["dsportal.request_id"], *about["dsportal.answers"]):
        pipe.set(names.TRACE_OF.format(name=name), trace, ex=kept)


def _make_room() -> None:
    r, oldest = connection(), (time.time() - settings.TRACE_SECONDS) * 1e6
    for ring in (names.TRACES, names.TRACES_NOTABLE):
        r.zremrangebyscore(ring, "-inf", oldest)
        excess = r.zcard(ring) - settings.TRACES_KEPT
        if excess > 0 and (gone := r.zpopmin(ring, excess)):
            r.unlink(*(names.TRACE.format(trace=trace) for trace, _at in gone))


# -- reading


def find(name: str) -> Trace | None:
    """By the id of a request or of an answer."""
    trace = connection().get(names.TRACE_OF.format(name=name))
    return _read([trace])[0] if trace else None


def are_kept(answers: Sequence[str]) -> set[str]:
    """Those of the answers whose request can be looked at."""
    found = connection().mget([names.TRACE_OF.format(name=answer) for answer in answers]) if answers else []
    return {answer for answer, trace in zip(answers, found, strict=True) if trace}


def newest(*, owner: str | None = None, before: int | None = None) -> Iterator[tuple[int, Trace]]:
    """Traces with when they began (µs), the newest first; of one person, or all; from those before a moment on."""
    rings = [names.TRACES_OF.format(user=owner)] if owner is not None else [names.TRACES, names.TRACES_NOTABLE]
    r, bound = connection(), f"({before}" if before else "+inf"
    while True:
        found = sorted(
            ((int(at), trace) for ring in rings for trace, at in r.zrevrangebyscore(ring, bound, "-inf", 0, READ_AT_ONCE, withscores=True)),
            reverse=True,
        )[:READ_AT_ONCE]
        if not found:
            return
        for (at, _id), trace in zip(found, _read([trace for _at, trace in found]), strict=True):
            if trace and trace.root:
                yield at, trace
        bound = f"({found[-1][0]}"


def _read(traces: Sequence[str]) -> list[Trace | None]:
    pipe = connection().pipeline(transaction=False)
    for trace in traces:
        pipe.lrange(names.TRACE.format(trace=trace), 0, -1)
    return [_trace(trace, rows) if rows else None for trace, rows in zip(traces, pipe.execute(), strict=True)]


def _trace(trace: str, rows: list[str]) -> Trace:
    root, steps = None, []
    for row in map(json.loads, rows):
        step = Step(row["n"], row["s"], row["e"], row["a"], "f" in row, row.get("f", ""))
        if step.name == REQUEST:
            root = step
        else:
            steps.append(step)
    return Trace(trace, root, sorted(steps, key=lambda s: (s.start, -s.end)))
