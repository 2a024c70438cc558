"""Rolling up counters, and alerts."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.accounts.problems import Conflict
from apps.accounts.services import record
from apps.monitoring import names
from apps.monitoring.histogram import percentile
from apps.monitoring.models import Alert, MetricMinute
from apps.monitoring.selectors import Bucket, read_by_version, workers
from apps.redis import connection
from apps.registry.selectors import live_version

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


@dataclass(frozen=True)
class AlertRule:
    name: str
    threshold: float
    window_seconds: int  # over which the value is taken
    for_seconds: int  # above the threshold so long before it fires, and below it so long before it is resolved
    message: str


P99 = AlertRule(
    "p99_latency",
    500.0,
    15,
    20,
    "P99 latency is {value:.0f} ms, above {threshold:.0f} ms. Start another inference worker or promote an INT8 version.",
)
ERRORS = AlertRule("error_rate", 0.05, 30, 20, "{value:.1%} of the requests fail, more than {threshold:.0%}. Look at the inference worker's log.")
NO_WORKER = AlertRule("no_inference_worker", 0.5, 1, 20, "A version is live but no inference worker is running.")
RULES = (P99, ERRORS, NO_WORKER)


def measure(rule: AlertRule) -> float | None:
    """The rule's value now; None where there is nothing to judge."""
    if rule is NO_WORKER:
        return None if live_version() is None else float(not workers("inference"))
    now = int(time.time())
    bucket = read_by_version(now - rule.window_seconds, now)[""]
    if not bucket.requests:
        return None
    return percentile(bucket.latency, 0.99) if rule is P99 else bucket.errors / bucket.requests


def evaluate_alerts() -> None:
    for rule in RULES:
        _judge(rule, measure(rule))


@transaction.atomic
def _judge(rule: AlertRule, value: float | None) -> None:
    """pending → firing → resolved, one open row a rule."""
    now = timezone.now()
    row = Alert.objects.filter(rule=rule.name).exclude(state=Alert.State.RESOLVED).first()
    if value is not None and value > rule.threshold:
        message = rule.message.format(value=value, threshold=rule.threshold)
        if row is None:
            Alert.objects.create(rule=rule.name, value=value, threshold=rule.threshold, message=message)
        elif row.state == Alert.State.PENDING and now - row.started_at >= timedelta(seconds=rule.for_seconds):
            Alert.objects.filter(pk=row.pk, state=Alert.State.PENDING).update(
                state=Alert.State.FIRING, fired_at=now, value=max(value, row.value), message=message, resolved_at=None
            )
        else:
            Alert.objects.filter(pk=row.pk).update(value=max(value, row.value), resolved_at=None)
    elif row is None:
        return
    elif row.state == Alert.State.PENDING:
        row.delete()  # a peak too short to tell anybody of
    elif row.resolved_at is None:  # below: wait whether it stays so
        Alert.objects.filter(pk=row.pk).update(resolved_at=now)
    elif now - row.resolved_at >= timedelta(seconds=rule.for_seconds):
        Alert.objects.filter(pk=row.pk).update(state=Alert.State.RESOLVED)


@transaction.atomic
def acknowledge(*, alert: Alert, actor: User, source: str = "") -> Alert:
    if alert.state == Alert.State.RESOLVED:
        raise Conflict(_("This alert is resolved; there is nothing to acknowledge."))
    if alert.acknowledged_at is None:
        alert.acknowledged_at, alert.acknowledged_by = timezone.now(), actor
        alert.save(update_fields=["acknowledged_at", "acknowledged_by"])
        record(actor, "alert.acknowledge", alert, after={"rule": alert.rule}, source=source)
    return alert
