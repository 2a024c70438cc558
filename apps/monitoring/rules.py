"""When somebody should look: each rule with what it measures, from when on, for how long, and what to do."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Avg, Count, StdDev

from apps.feedback.models import Feedback
from apps.monitoring.buckets import read_by_version
from apps.monitoring.histogram import percentile
from apps.monitoring.rollups import queue_depth
from apps.monitoring.selectors import minutes_between, workers
from apps.registry.models import ModelVersion
from apps.registry.selectors import live_version

OBJECTIVE = 0.99  # of the questions are answered
GB = 1e9


@dataclass(frozen=True)
class AlertRule:
    name: str
    threshold: float
    for_seconds: int  # above the threshold so long before it fires, and below it so long before it is resolved
    message: str
    measure: Callable[[], float | None]  # now; None where there is nothing to judge


def _recent(seconds: int):
    now = int(time.time())
    return read_by_version(now - seconds, now)[""]


def p99_ms() -> float | None:
    return percentile(_recent(15).latency, 0.99)


def error_rate() -> float | None:
    bucket = _recent(30)
    return bucket.errors / bucket.requests if bucket.requests else None


def no_worker() -> float | None:
    return None if live_version() is None else float(not workers("inference"))


def no_live_version() -> float | None:
    """One that could be live is there, and none is: nobody is answered."""
    return float(live_version() is None) if ModelVersion.objects.filter(deployments__isnull=False).exists() else None


def queue_share() -> float:
    return queue_depth() / settings.MAX_IN_FLIGHT


def disk_used() -> float:
    """How much of the room that jobs need is missing: above 1 they are refused."""
    free = shutil.disk_usage(settings.HOME).free
    return 4 * settings.MIN_FREE_BYTES / max(1.0, free)


def burn_rate(long_minutes: int, short_minutes: int) -> float | None:
    """How many times as fast as allowed the month's errors are used up, over both windows: the long one says that it matters, the short
    one that it still goes on (Google's SRE workbook, chapter 5)."""
    rates = []
    for minutes in (long_minutes, short_minutes):
        requests, errors = minutes_between(time.time() - 60 * minutes, time.time())
        if requests < 20:  # one failure of a handful is no trend
            return None
        rates.append(errors / requests / (1 - OBJECTIVE))
    return min(rates)


def rating_drop() -> float | None:
    """By how much the last 50 ratings of the live version's answers are worse than the 200 before, in standard errors."""
    ids = list(Feedback.objects.order_by("-id").values_list("pk", flat=True)[:250])
    if len(ids) < 100:
        return None

    def of(pks):
        return Feedback.objects.filter(pk__in=pks).aggregate(mean=Avg("rating"), spread=StdDev("rating"), count=Count("pk"))

    new, old = of(ids[:50]), of(ids[50:])
    error = (new["spread"] ** 2 / new["count"] + old["spread"] ** 2 / old["count"]) ** 0.5
    return (old["mean"] - new["mean"]) / error if error else 0.0


P99 = AlertRule(
    "p99_latency", 500.0, 20,
    "P99 latency is {value:.0f} ms, above {threshold:.0f} ms. Start another inference worker or promote an INT8 version.", p99_ms,
)  # fmt: skip
ERRORS = AlertRule(
    "error_rate", 0.05, 20, "{value:.1%} of the requests fail, more than {threshold:.0%}. Look at the inference worker's log.", error_rate
)
QUEUE = AlertRule("queue", 0.8, 15, "The queue is {value:.0%} full; beyond it questions are refused. Start another inference worker.", queue_share)
RULES = (
    P99,
    ERRORS,
    AlertRule("no_inference_worker", 0.5, 20, "A version is live but no inference worker is running.", no_worker),
    AlertRule("no_live_version", 0.5, 20, "No version is live: nobody is answered. Promote one, or roll back.", no_live_version),
    QUEUE,
    AlertRule("disk", 1.0, 10, "The disk is nearly full: jobs will be refused. Remove old artifacts, or give it more room.", disk_used),
    AlertRule(
        "errors_fast", 14.4, 10, "Errors use up a month's allowance {value:.0f} times too fast, for an hour and still.", lambda: burn_rate(60, 5),
    ),
    AlertRule(
        "errors_slow", 6.0, 60, "Errors use up a month's allowance {value:.0f} times too fast, for six hours and still.", lambda: burn_rate(360, 30),
    ),
    AlertRule(
        "ratings", 3.0, 60, "The last 50 ratings are worse than the 200 before, by {value:.1f} standard errors. Read them, and think of rolling back.",
        rating_drop,
    ),
)  # fmt: skip
