"""What the charts show: per-second buckets of the last hour from Redis, minutes from the database before that."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.db.models import QuerySet, Sum

from apps.monitoring import names
from apps.monitoring.histogram import percentile
from apps.monitoring.models import Alert, MetricMinute
from apps.redis import connection

MAX_POINTS = 2000


@dataclass
class Bucket:
    requests: int = 0
    errors: int = 0
    cached: int = 0
    latency: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    queue_depth: float | None = None
    replicas: float | None = None

    def add(self, other: "Bucket") -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.cached += other.cached
        for number, count in other.latency.items():
            self.latency[number] += count
        self.queue_depth = other.queue_depth if other.queue_depth is not None else self.queue_depth
        self.replicas = other.replicas if other.replicas is not None else self.replicas


def read_seconds(first: int, last: int, version: str | None = None) -> dict[int, Bucket]:
    """Buckets of the seconds first … last that saw anything; of one version, or of all together."""
    pipe = connection().pipeline(transaction=False)
    seconds = range(first, last + 1)
    for second in seconds:
        pipe.hgetall(names.SECOND.format(second=second))
    return {second: _bucket(row, version) for second, row in zip(seconds, pipe.execute(), strict=True) if row}


def _bucket(row: dict[str, str], version: str | None) -> Bucket:
    bucket = Bucket()
    for name, value in row.items():
        owner, what = name.rsplit("|", 1)
        if owner == "gauge":
            setattr(bucket, what, float(value))
        elif version is not None and owner != version:
            continue
        elif what == "n":
            bucket.requests += int(value)
        elif what == "e":
            bucket.errors += int(value)
        elif what == "c":
            bucket.cached += int(value)
        else:
            bucket.latency[int(what)] += int(value)
    return bucket


def read_by_version(first: int, last: int) -> dict[str, Bucket]:
    """One bucket a version over the whole span; the key "" holds all versions and the gauges."""
    pipe = connection().pipeline(transaction=False)
    for second in range(first, last + 1):
        pipe.hgetall(names.SECOND.format(second=second))
    totals: dict[str, Bucket] = {"": Bucket()}
    for row in pipe.execute():
        for version in {name.rsplit("|", 1)[0] for name in row} - {"gauge"}:
            totals.setdefault(version, Bucket()).add(_bucket(row, version))
        totals[""].add(_bucket(row, None))
    return totals


def _minutes(first: int, last: int, version: str | None) -> dict[int, Bucket]:
    rows = MetricMinute.objects.filter(
        version=version or "", minute__gte=datetime.fromtimestamp(first, UTC), minute__lte=datetime.fromtimestamp(last, UTC)
    )
    return {
        int(row.minute.timestamp()): Bucket(
            row.requests, row.errors, row.cached, defaultdict(int, {int(k): v for k, v in row.latency.items()}), row.queue_depth, row.replicas
        )
        for row in rows
    }


def minutes_between(first: float, last: float) -> tuple[int, int]:
    """Requests and errors of all versions in the minutes that began within."""
    span = {"minute__gte": datetime.fromtimestamp(first, UTC), "minute__lte": datetime.fromtimestamp(last, UTC)}
    found = MetricMinute.objects.filter(version="", **span).aggregate(requests=Sum("requests"), errors=Sum("errors"))
    return found["requests"] or 0, found["errors"] or 0


def timeseries(*, window: int, step: int, version: str | None = None, now: float | None = None) -> list[dict]:
    """Points of `step` seconds over the last `window` seconds, oldest first; every point is there, also where nothing happened."""
    end = int(now or time.time())
    if window > names.SECONDS_KEPT - 60:
        step = max(60, step)
    step = max(step, -(-window // MAX_POINTS), 1)
    last = end - end % step
    first = last - (window // step - 1) * step
    if step >= 60 and window > names.SECONDS_KEPT - 60:
        found = _minutes(first, last + step, version)
        _prefer_seconds(found, end - end % 60 - 60, end, version)
    else:
        found = read_seconds(first, end, version)
        missing = _minutes(first, last, version) if not found else {}
        found = found or missing
    points: dict[int, Bucket] = {start: Bucket() for start in range(first, last + step, step)}
    for second, bucket in found.items():
        start = second - second % step
        if start in points:
            points[start].add(bucket)
    return _as_points(points, step, end)


def _prefer_seconds(found: dict[int, Bucket], first: int, end: int, version: str | None) -> None:
    """The running minute and the one before it may not be rolled up to their ends yet: their seconds replace them, unless Redis
    was wiped in the meantime and knows less than the row."""
    fresh = read_seconds(first, end, version)
    for minute in (first, first + 60):
        seconds = {second: bucket for second, bucket in fresh.items() if minute <= second < minute + 60}
        if minute not in found or sum(bucket.requests for bucket in seconds.values()) >= found[minute].requests:
            found.pop(minute, None)
            found.update(seconds)


def _as_points(points: dict[int, Bucket], step: int, end: int) -> list[dict]:
    out, queue, replicas = [], 0.0, 0.0
    for start, bucket in points.items():
        queue = bucket.queue_depth if bucket.queue_depth is not None else queue
        replicas = bucket.replicas if bucket.replicas is not None else replicas
        span = max(1, min(step, end - start + 1))
        out.append(
            {
                "time": datetime.fromtimestamp(start, UTC).isoformat().replace("+00:00", "Z"),
                "qps": round(bucket.requests / span, 4),
                "requests": bucket.requests,
                "p50_ms": percentile(bucket.latency, 0.5),
                "p99_ms": percentile(bucket.latency, 0.99),
                "error_rate": bucket.errors / bucket.requests if bucket.requests else None,
                "cache_hit_rate": bucket.cached / bucket.requests if bucket.requests else None,
                "queue_depth": queue,
                "replicas": replicas,
            }
        )
    return out


def alerts() -> QuerySet[Alert]:
    return Alert.objects.select_related("acknowledged_by")


def firing() -> QuerySet[Alert]:
    return alerts().filter(state=Alert.State.FIRING)


def workers(role: str) -> list[str]:
    """Names of the workers of a role that are beating: web, jobs or inference."""
    pattern = names.WORKER_PATTERN.format(role=role)
    return sorted(key.rsplit(":", 1)[1] for key in connection().scan_iter(pattern, count=500))
