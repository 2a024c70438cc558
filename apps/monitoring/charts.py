"""The figures of the monitoring page: everything on one time axis, with thresholds, deployments and alerts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from apps.monitoring.buckets import PHASES
from apps.monitoring.figures import Chart, Line, Mark, Number, Span, Table, Threshold, line_chart
from apps.monitoring.models import Alert
from apps.monitoring.rules import ERRORS, P99, QUEUE
from apps.portal.templatetags.portal import NOTHING, decimals, ms, percent, size
from apps.registry.models import ModelVersion
from apps.serving.models import Deployment

TABLE_ROWS = 24
RIGHT = 44  # px for the labels of the chart that has some; the others keep it free, so that all share one axis
PHASE_NAMES = {
    "turn": gettext_lazy("Turn"), "database": gettext_lazy("Database"), "cache": gettext_lazy("Cache"), "queue": gettext_lazy("Queue"), "load": gettext_lazy("Loading"),
    "prefill": gettext_lazy("Prefill"), "decode": gettext_lazy("Decode"), "shared": gettext_lazy("Shared"), "deliver": gettext_lazy("Delivery"),
}  # fmt: skip
YOUNG_SECONDS = 5
NOW_SECONDS = 10  # over which the rate of now is taken


@dataclass(frozen=True)
class Window:
    """Seconds shown, of one point, and after which it is asked for again."""

    name: str
    label: Any
    seconds: int
    step: int
    every: int


WINDOWS = {
    "5m": Window("5m", gettext_lazy("5 min"), 300, 2, 2),
    "1h": Window("1h", gettext_lazy("1 h"), 3600, 15, 4),
    "24h": Window("24h", gettext_lazy("24 h"), 86_400, 300, 15),
    "7d": Window("7d", gettext_lazy("7 days"), 7 * 86_400, 1800, 60),
    "1y": Window("1y", gettext_lazy("1 year"), 365 * 86_400, 86_400, 300),
}


@dataclass(frozen=True)
class Happened:
    """What is marked on every chart of the window."""

    deployments: Sequence[Deployment]
    alerts: Sequence[Alert]


def happened(window: Window) -> Happened:
    since = timezone.now() - timedelta(seconds=window.seconds)
    alerts = Alert.objects.filter(fired_at__isnull=False).filter(Q(resolved_at__isnull=True) | Q(resolved_at__gte=since))[:20]
    return Happened(list(Deployment.objects.filter(started_at__gte=since).select_related("model_version")[:20]), list(alerts))


def monitoring_charts(points: Sequence[dict], window: Window, version: ModelVersion | None, found: Happened, link: str) -> dict[str, Chart]:
    """By name: qps, latency, errors, first_token, phases, tokens, batch, cache, queue, replicas, memory. `link`: where a click on a point leads,
    with {x} for its time."""
    times = [point["time"] for point in points]
    colour = f"var(--v-c{version.colour})" if version else "var(--accent)"
    marks = [Mark(_iso(d.started_at), d.model_version.name, f"var(--v-c{d.model_version.colour})") for d in found.deployments]
    busy = any(point["requests"] or point["refused"] for point in points)

    def chart(
        title: str,
        now: str,
        lines: Sequence[tuple[str, str, str]],
        show: Callable[[Number], str],
        *,
        alerts: Sequence[str] = (),
        empty: str = "",
        hover: str = "%{y:.3~r}",
        labels: Mapping[str, str] = MappingProxyType({}),
        **more: Any,
    ) -> Chart:
        # `lines`: column, name, colour; `labels`: of a column, at its line's end, where its name is too long for it
        drawn = [Line(name, times, [p[column] for p in points], tone, labels.get(column, ""), hover) for column, name, tone in lines]
        rows = _thinned([[p["time"], *(show(p[column]) for column, _name, _tone in lines)] for p in points])
        table = Table([_("Time"), *([name for _column, name, _tone in lines] if len(lines) > 1 else [title])], rows)
        spans = [Span(_iso(a.fired_at), _iso(a.resolved_at or timezone.now())) for a in found.alerts if a.rule in alerts and a.fired_at]
        return line_chart(
            drawn,
            size="s",
            dates=True,
            x_range=[times[0], times[-1]],
            marks=marks,
            spans=_within(spans, times[0]),
            now=now,
            table=table,
            empty=empty,
            link=link,
            right=RIGHT,
            **more,
        )

    seen = [name for name in PHASES if any(point[f"phase_{name}_ms"] for point in points)]
    failures, failure_labels = [("error_rate", "", colour)], {}
    if any(point["refused"] for point in points):
        failures = [("error_rate", _("Errors"), colour), ("refused_rate", _("Refused (429)"), "var(--warn)")]
        failure_labels = {"error_rate": _("err"), "refused_rate": "429"}
    quiet = "" if busy else _("No request in this window.")
    return {
        "qps": chart(_("Requests/s"), decimals(_mean(points, "qps", window.step), 1), [("qps", "", colour)], lambda v: decimals(v, 2)),
        "latency": chart(
            _("Latency"), ms(_last(points, "p99_ms")), [("p99_ms", "P99", colour), ("p95_ms", "P95", "var(--heat-2)"), ("p50_ms", "P50", "var(--soft)")], ms,
            empty=quiet, alerts=[P99.name], threshold=Threshold(P99.threshold, ms(P99.threshold)), hover="%{y:.0f} ms",
        ),
        "errors": chart(
            _("Errors"), percent(_last(points, "error_rate"), 1), failures, lambda v: percent(v, 1), empty=quiet, labels=failure_labels,
            alerts=[ERRORS.name, "errors_fast", "errors_slow"], threshold=Threshold(ERRORS.threshold, percent(ERRORS.threshold)), tick_format=".0%", ceiling=1.0, least=0.02, hover="%{y:.1%}",
        ),
        "first_token": chart(
            _("Time to first token"), ms(_last(points, "first_token_p99_ms")), [("first_token_p99_ms", "P99", colour), ("first_token_p50_ms", "P50", "var(--soft)")],
            ms, empty=quiet, hover="%{y:.0f} ms",
        ),
        "phases": chart(
            _("Time by phase"), ms(_last([_whole(point) for point in points], "phases_ms")),
            [(f"phase_{name}_ms", str(PHASE_NAMES[name]), f"var(--phase-{name})") for name in seen], ms, stacked=True, alerts=[P99.name],
            threshold=Threshold(P99.threshold, ms(P99.threshold)), hover="%{y:.3~r} ms", empty=_("No request in this window has told its phases."),
        ),
        "tokens": chart(
            _("Tokens/s"), decimals(_mean(points, "tokens_per_second", window.step), 0), [("tokens_per_second", "", colour)], lambda v: decimals(v, 1), least=1.0,
        ),
        "batch": chart(
            _("Batch size"), decimals(_last(points, "batch_size"), 1), [("batch_size", "", colour)], lambda v: decimals(v, 2), least=2.0,
            empty=_("No engine was at work in this window."),
        ),
        "cache": chart(
            _("Cache hits"), percent(_last(points, "cache_hit_rate")), [("cache_hit_rate", "", colour)], percent, empty=quiet, tick_format=".0%",
            ceiling=1.0, least=0.5, hover="%{y:.0%}",
        ),
        "queue": chart(
            _("Queue"), decimals(_last(points, "queue_depth"), 0), [("queue_depth", "", colour)], lambda v: decimals(v, 0), least=4.0,
            alerts=["queue"], threshold=Threshold(QUEUE.threshold * settings.MAX_IN_FLIGHT, decimals(QUEUE.threshold * settings.MAX_IN_FLIGHT, 0)),
        ),
        "replicas": chart(_("Inference workers"), decimals(_last(points, "replicas"), 0), [("replicas", "", colour)], lambda v: decimals(v, 0), alerts=["no_inference_worker", "no_live_version"], least=2.0),
        "memory": chart(
            _("Memory"), size(_last(points, "memory_bytes")), [("memory_bytes", "", colour)], size, empty=_("Nobody has told their memory in this window."),
            tick_format="~s", suffix="B", hover="%{y:.3s}B",
        ),
    }  # fmt: skip


def settled(points: list[dict]) -> list[dict]:
    """Without the running point while it is younger than a few seconds: its rate would fall to nothing and rise again."""
    begun = parse_datetime(points[-1]["time"])
    return points[:-1] if begun and (timezone.now() - begun).total_seconds() < YOUNG_SECONDS else points


def _mean(points: Sequence[dict], column: str, step: int) -> float | None:
    """Over the last points that make up ten seconds: one of two seconds alone jumps about."""
    last = points[-max(1, NOW_SECONDS // step) :]
    return sum(p[column] for p in last) / len(last) if last else None


def _last(points: Sequence[dict], column: str) -> Number:
    """Of the last points that have one."""
    return next((p[column] for p in reversed(points[-5:]) if p[column] is not None), None)


def _whole(point: dict) -> dict[str, Number]:
    """All phases of a request together."""
    parts = [value for name in PHASES if (value := point[f"phase_{name}_ms"]) is not None]
    return {"phases_ms": sum(parts) if parts else None}


def _within(spans: Sequence[Span], first: str) -> list[Span]:
    """A shape that begins before the axis would stretch it."""
    return [Span(max(span.x0, first), span.x1, span.colour) for span in spans]


def _thinned(rows: list[list[str]]) -> list[list[str]]:
    stride = max(1, -(-len(rows) // TABLE_ROWS))
    return rows[-1::-stride]


def _iso(moment: datetime) -> str:
    return moment.astimezone(tz=None).astimezone(timezone.get_default_timezone()).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else NOTHING


def moment_of(text: str) -> datetime | None:
    """The start of a point from the page's address; None where it is none."""
    try:
        found = parse_datetime(text)
    except ValueError:
        return None
    return found if found and found.tzinfo else None
