"""Seconds in Redis → minutes for a week → hours for a year. Every step may be done again: a row is corrected, never added to."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from django.db.models import Max, Min
from django.utils import timezone

from apps.monitoring import names
from apps.monitoring.buckets import ALL, COUNTS, GAUGES, Bucket, read_by_version, set_gauges
from apps.monitoring.models import MetricHour, MetricMinute, Rollup
from apps.monitoring.presence import forget_absent, present
from apps.redis import connection

MINUTES_KEPT = timedelta(days=8)  # a day more than are shown
HOURS_KEPT = timedelta(days=367)
MINUTE, HOUR = 60, 3600
ROLES = ("web", "jobs", "inference")


def queue_depth() -> int:
    """Answers asked for and not finished."""
    return connection().zcount(names.IN_FLIGHT, time.time(), "+inf")


def roll_up() -> None:
    """Write the gauges of this second; as rows the running minute and those before it that are not there yet, and the hours they are in."""
    now = int(time.time())
    there = {role: present(role) for role in ROLES}
    memory = sum(sum(processes.values()) for processes in there.values())
    gauges = {"queue_depth": queue_depth(), "replicas": len(there["inference"])}
    if memory:  # else nobody has spoken since Redis came back: that is no figure
        gauges["memory_bytes"] = memory
    set_gauges(now, gauges)
    minute = now - now % MINUTE
    done = int(connection().get(names.ROLLED_UP) or minute)
    first = max(min(done, minute) - MINUTE, minute - names.SECONDS_KEPT // MINUTE * MINUTE)  # the one before was perhaps written before its end
    for start in range(first, minute + 1, MINUTE):
        for version, bucket in read_by_version(start, min(start + MINUTE - 1, now)).items():
            if bucket != Bucket():  # something was seen then
                _write_minute(version, start, bucket)
    connection().set(names.ROLLED_UP, minute)
    if done < minute or now % MINUTE < MINUTE / 6:
        _roll_up_hours(now)
        for role in ROLES:
            forget_absent(role)
    if now % HOUR < 10:
        MetricMinute.objects.filter(minute__lt=timezone.now() - MINUTES_KEPT).delete()
        MetricHour.objects.filter(hour__lt=timezone.now() - HOURS_KEPT).delete()


def figures_of(bucket: Bucket) -> dict:
    """The columns of a row."""
    counts = {name: getattr(bucket, name) for name in COUNTS.values()}
    histograms = {name: {str(number): count for number, count in getattr(bucket, name).items()} for name in ("latency", "first_token")}
    return {**counts, **histograms, "phases": dict(bucket.phases), **{name: getattr(bucket, name) or 0.0 for name in GAUGES}}


def bucket_of(row: Rollup) -> Bucket:
    bucket = Bucket(**{name: getattr(row, name) for name in COUNTS.values()})
    if any(gauges := {name: getattr(row, name) for name in GAUGES}.values()):  # all at zero: beat was away, and nobody looked
        bucket = replace(bucket, **dict(zip(GAUGES, gauges, strict=True)))
    for name in ("latency", "first_token"):
        getattr(bucket, name).update({int(number): count for number, count in getattr(row, name).items()})
    bucket.phases.update(row.phases)
    return bucket


def _write_minute(version: str, start: int, bucket: Bucket) -> None:
    figures = figures_of(bucket)
    row, created = MetricMinute.objects.get_or_create(version=version, minute=datetime.fromtimestamp(start, UTC), defaults=figures)
    # After Redis was wiped the seconds may hold less than the row: the larger count is the truer one.
    if not created and row.requests <= bucket.requests and row.written_tokens <= bucket.written_tokens:
        MetricMinute.objects.filter(pk=row.pk).update(**figures)


def _roll_up_hours(now: int) -> None:
    """From the newest hour that is there on, which was perhaps written before its end."""
    newest = MetricHour.objects.aggregate(at=Max("hour"))["at"] or MetricMinute.objects.aggregate(at=Min("minute"))["at"]
    if newest is None:
        return
    begun = int(newest.timestamp())
    for start in range(begun - begun % HOUR, now + 1, HOUR):
        at = datetime.fromtimestamp(start, UTC)
        totals: dict[str, Bucket] = {}
        for row in MetricMinute.objects.filter(minute__gte=at, minute__lt=at + timedelta(seconds=HOUR)).order_by("minute"):
            totals.setdefault(row.version, Bucket()).add(bucket_of(row))
        for version, bucket in totals.items():
            if bucket.requests or version == ALL:
                MetricHour.objects.update_or_create(version=version, hour=at, defaults=figures_of(bucket))
