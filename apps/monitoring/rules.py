"""When somebody should look: each rule with what it measures, from when on, for how long, and what to do."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter
from typing import Any

from django.conf import settings

from apps.monitoring import drift, names
from apps.monitoring.buckets import read_by_version
from apps.monitoring.histogram import percentile
from apps.monitoring.rollups import queue_depth
from apps.monitoring.selectors import minutes_between, workers
from apps.portal.templatetags.portal import percent
from apps.registry.models import ModelVersion
from apps.registry.selectors import live_version

OBJECTIVE = 0.99  # of the questions are answered
ROOM = 4  # times what jobs ask for at least: somebody should hear of it before they are refused
FEWEST_REQUESTS = 20
_FAILED, _ASKED = '{outcome="error"}', '{outcome!~"busy|invalid"}'  # as in the charts, where what was refused is no request
P99_SECONDS, ERROR_SECONDS = 15, 30  # over which they are taken


class Sentence(Formatter):
    """A message's figures as pages write them: `{value:.1%}` as 25.0 %."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return percent(value, format_spec[1:-1]) if format_spec.endswith("%") else super().format_field(value, format_spec)


@dataclass(frozen=True)
class AlertRule:
    name: str
    threshold: float
    for_seconds: int  # above the threshold so long before it fires, and below it so long before it is resolved
    message: str
    measure: Callable[[], float | None]  # now; None where there is nothing to judge
    promql: str  # the same for Prometheus
    severity: str = "warning"

    def said(self, value: float) -> str:
        return Sentence().format(self.message, value=value, threshold=self.threshold)


def _recent(seconds: int):
    now = int(time.time())
    return read_by_version(now - seconds, now)[""]


def p99_ms() -> float | None:
    return percentile(_recent(P99_SECONDS).latency, 0.99)


def error_rate() -> float | None:
    bucket = _recent(ERROR_SECONDS)
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
    return ROOM * settings.MIN_FREE_BYTES / max(1.0, free)


def burn_rate(long_minutes: int, short_minutes: int) -> float | None:
    """How many times as fast as allowed the month's errors are used up, over both windows: the long one says that it matters, the short
    one that it still goes on (Google's SRE workbook, chapter 5)."""
    rates = []
    for minutes in (long_minutes, short_minutes):
        requests, errors = minutes_between(time.time() - 60 * minutes, time.time())
        if requests < FEWEST_REQUESTS:  # one failure of a handful is no trend
            return None
        rates.append(errors / requests / (1 - OBJECTIVE))
    return min(rates)


def _error_share(seconds: str) -> str:
    def rate(labels: str) -> str:
        return f"sum(rate({names.REQUESTS_TOTAL}{labels}[{seconds}]))"

    return f"{rate(_FAILED)} / {rate(_ASKED)}"


def _burn_rate(long: str, short: str) -> str:
    """The smaller of both windows' rates, where the short one has seen enough."""
    mine, other = f"({_error_share(long)})", f"({_error_share(short)})"
    return f"((({mine} < {other}) or {other}) / {1 - OBJECTIVE:g} and sum(increase({names.REQUESTS_TOTAL}{_ASKED}[{short}])) >= {FEWEST_REQUESTS})"


def _told_by_beat(name: str) -> str:
    """What only rows tell: beat measures it, and /metrics repeats it."""
    return f'max({names.ALERT_VALUE}{{rule="{name}"}})'


P99 = AlertRule(
    "p99_latency", 500.0, 30,
    "P99 latency is {value:.0f} ms, above {threshold:.0f} ms. Start another inference worker or promote an INT8 version.", p99_ms,
    f"1000 * histogram_quantile(0.99, sum by (le) (rate({names.REQUEST_SECONDS}_bucket[30s])))",
)  # fmt: skip
ERRORS = AlertRule(
    "error_rate", 0.05, 20, "{value:.1%} of the requests fail, more than {threshold:.0%}. Look at the inference worker's log.", error_rate,
    _error_share("30s"), "critical",
)  # fmt: skip
QUEUE = AlertRule(
    "queue", 0.8, 15, "The queue is {value:.0%} full; beyond it questions are refused. Start another inference worker.", queue_share,
    f"max({names.QUEUE_DEPTH}) / max({names.QUEUE_LIMIT})",
)  # fmt: skip
RULES = (
    P99,
    ERRORS,
    AlertRule(
        "no_inference_worker", 0.5, 20, "A version is live but no inference worker is running.", no_worker,
        f'(max({names.LIVE_VERSIONS}) > bool 0) * (max({names.WORKERS}{{role="inference"}}) == bool 0)', "critical",
    ),
    AlertRule(
        "no_live_version", 0.5, 20, "No version is live: nobody is answered. Promote one, or roll back.", no_live_version,
        f"((max({names.LIVE_VERSIONS}) == bool 0) and max(max_over_time({names.LIVE_VERSIONS}[7d])) > 0)", "critical",
    ),
    QUEUE,
    AlertRule(
        "disk", 1.0, 10, "The disk is nearly full: jobs will be refused. Remove old artifacts, or give it more room.", disk_used,
        f"max({ROOM * settings.MIN_FREE_BYTES} / {names.DISK_FREE})", "critical",
    ),
    AlertRule(
        "errors_fast", 14.4, 10, "Errors use up a month's allowance {value:.0f} times too fast, for an hour and still.", lambda: burn_rate(60, 5),
        _burn_rate("1h", "5m"), "critical",
    ),
    AlertRule(
        "errors_slow", 6.0, 60, "Errors use up a month's allowance {value:.0f} times too fast, for six hours and still.", lambda: burn_rate(360, 30),
        _burn_rate("6h", "30m"),
    ),
    AlertRule(
        "ratings", 3.0, 60, "The last 50 ratings are worse than the 200 before, by {value:.1f} standard errors. Read them, and think of rolling back.",
        drift.slow_rating_drop, _told_by_beat("ratings"),
    ),
    AlertRule(
        "topics", 8.0, 60, "The last 100 questions are about other things than the 400 before ({value:.0f} deviations from chance). Read them: is the model taught of these?",
        drift.slow_topic_drift, _told_by_beat("topics"),
    ),
)  # fmt: skip
