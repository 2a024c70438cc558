"""What the charts show: the seconds of the last hour from Redis, minutes and hours from the database before that."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from django.db.models import Case, QuerySet, Sum, When

from apps.monitoring import names
from apps.monitoring.buckets import ALL, PHASES, Bucket, read_seconds
from apps.monitoring.histogram import percentile
from apps.monitoring.models import Alert, MetricHour, MetricMinute
from apps.monitoring.presence import present
from apps.monitoring.rollups import HOUR, HOURS_KEPT, MINUTE, MINUTES_KEPT, bucket_of

MAX_POINTS = 2000
MAX_WINDOW_SECONDS = int(HOURS_KEPT.total_seconds())


def minutes_between(first: float, last: float) -> tuple[int, int]:
    """Requests and errors of all versions in the minutes that began within."""
    found = MetricMinute.objects.filter(version=ALL, minute__range=_moments(first, last)).aggregate(requests=Sum("requests"), errors=Sum("errors"))
    return found["requests"] or 0, found["errors"] or 0


def timeseries(*, window: int, step: int, version: str | None = None, now: float | None = None) -> list[dict]:
    """Points of `step` seconds over the last `window` seconds, oldest first; every point is there, also where nothing happened."""
    end = int(now or time.time())
    finest = _finest(window)
    step = max(step, finest, -(-window // MAX_POINTS))
    last = end - end % step
    first = last - (window // step - 1) * step
    points: dict[int, Bucket] = {start: Bucket() for start in range(first, last + step, step)}
    for second, bucket in _found(finest, first, end, version):
        start = second - second % step
        if start in points:
            points[start].add(bucket)
    return _as_points(points, step, end)


def _finest(window: int) -> int:
    """Seconds of what is kept for so long."""
    if window <= names.SECONDS_KEPT - MINUTE:
        return 1
    return MINUTE if window <= MINUTES_KEPT.total_seconds() else HOUR


def _found(finest: int, first: int, end: int, version: str | None) -> Iterator[tuple[int, Bucket]]:
    if finest == 1:
        seconds = read_seconds(first, end, version)
        yield from seconds.items() if seconds else _rows(MetricMinute, "minute", first, end, version)  # Redis was wiped
        return
    if finest == HOUR:  # the running one, and the one before for the first minutes after its end, are taken from their minutes
        running = (end - 2 * MINUTE) // HOUR * HOUR
        yield from _rows(MetricHour, "hour", first, running - 1, version)
        first = running
    found = dict(_rows(MetricMinute, "minute", first, end, version))
    _prefer_seconds(found, end - end % MINUTE - MINUTE, end, version)
    yield from found.items()


def _rows(model: type[MetricMinute] | type[MetricHour], column: str, first: int, last: int, version: str | None) -> Iterator[tuple[int, Bucket]]:
    for row in model.objects.filter(version=version or ALL, **{f"{column}__range": _moments(first, last)}):
        yield int(getattr(row, column).timestamp()), bucket_of(row)


def _moments(first: float, last: float) -> tuple[datetime, datetime]:
    return datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC)


def _prefer_seconds(found: dict[int, Bucket], first: int, end: int, version: str | None) -> None:
    """The running minute and the one before it may not be rolled up to their ends yet: their seconds replace them, unless Redis
    was wiped in the meantime and knows less than the row."""
    fresh = read_seconds(first, end, version)
    for minute in (first, first + MINUTE):
        seconds = {second: bucket for second, bucket in fresh.items() if minute <= second < minute + MINUTE}
        if minute not in found or sum(bucket.requests for bucket in seconds.values()) >= found[minute].requests:
            found.pop(minute, None)
            found.update(seconds)


def _as_points(points: dict[int, Bucket], step: int, end: int) -> list[dict]:
    out, gauges = [], {"queue_depth": 0.0, "replicas": 0.0, "memory_bytes": None}
    for start, bucket in points.items():
        gauges = {name: value if (value := getattr(bucket, name)) is not None else known for name, known in gauges.items()}
        span = max(1, min(step, end - start + 1))
        out.append(
            {
                "time": datetime.fromtimestamp(start, UTC).isoformat().replace("+00:00", "Z"),
                "qps": round(bucket.requests / span, 4),
                "requests": bucket.requests,
                **{f"p{share}_ms": percentile(bucket.latency, share / 100) for share in (50, 95, 99)},
                **{f"first_token_p{share}_ms": percentile(bucket.first_token, share / 100) for share in (50, 99)},
                **{f"phase_{name}_ms": round(bucket.phases[name] / 1000 / bucket.requests, 4) if bucket.requests else None for name in PHASES},
                "error_rate": bucket.errors / bucket.requests if bucket.requests else None,
                "refused": bucket.refused,
                "refused_rate": bucket.refused / (bucket.requests + bucket.refused) if bucket.requests + bucket.refused else None,
                "cache_hit_rate": bucket.cached / bucket.requests if bucket.requests else None,
                "tokens_per_second": round(bucket.written_tokens / span, 2),
                # A step reads prompts and writes a token of every answer that is past its own: those are its batch.
                "batch_size": round(bucket.written_tokens / bucket.steps, 3) if bucket.steps else None,
                **gauges,
            }
        )
    return out


def alerts() -> QuerySet[Alert]:
    return Alert.objects.select_related("acknowledged_by")


def open_first(found: QuerySet[Alert]) -> QuerySet[Alert]:
    """What is not over above what is, the newest first."""
    return found.order_by(Case(When(state=Alert.State.RESOLVED, then=1), default=0), "-id")


def firing() -> QuerySet[Alert]:
    return alerts().filter(state=Alert.State.FIRING)


def workers(role: str) -> list[str]:
    """Names of the workers of a role that are beating: web, jobs or inference."""
    return list(present(role))
