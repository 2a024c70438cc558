"""Rolling up counters."""

import time
from datetime import UTC, datetime, timedelta

from django.utils import timezone

from apps.monitoring import names
from apps.monitoring.models import MetricMinute
from apps.monitoring.selectors import Bucket, read_by_version, workers
from apps.redis import connection

MINUTES_KEPT_DAYS = 8


def queue_depth() -> int:
    """Answers asked for and not finished."""
    return connection().zcount(names.IN_FLIGHT, time.time(), "+inf")


def roll_up() -> None:
    """Write the gauges of this second, and the running and the last minute as rows; writing again corrects them."""
    now = int(time.time())
    key = names.SECOND.format(second=now)
    pipe = connection().pipeline(transaction=False)
    pipe.hset(key, mapping={"gauge|queue_depth": queue_depth(), "gauge|replicas": len(workers("inference"))})
    pipe.expire(key, names.SECONDS_KEPT)
    pipe.execute()
    minute = now - now % 60
    for start in (minute - 60, minute):
        for version, bucket in read_by_version(start, min(start + 59, now)).items():
            if bucket.requests:
                _write_minute(version, start, bucket)
    if now % 3600 < 10:
        MetricMinute.objects.filter(minute__lt=timezone.now() - timedelta(days=MINUTES_KEPT_DAYS)).delete()


def _write_minute(version: str, start: int, bucket: Bucket) -> None:
    figures = {
        "requests": bucket.requests, "errors": bucket.errors, "cached": bucket.cached,
        "latency": {str(k): v for k, v in bucket.latency.items()},
        "queue_depth": bucket.queue_depth or 0.0, "replicas": bucket.replicas or 0.0,
    }  # fmt: skip
    row, created = MetricMinute.objects.get_or_create(version=version, minute=datetime.fromtimestamp(start, UTC), defaults=figures)
    # After Redis was wiped the seconds may hold less than the row: the larger count is the truer one.
    if not created and row.requests < bucket.requests:
        MetricMinute.objects.filter(pk=row.pk).update(**figures)
