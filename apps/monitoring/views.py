import csv
from collections.abc import Iterator
from datetime import timedelta

import redis
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.utils.translation import get_language

from apps.accounts.problems import Problem
from apps.monitoring import alerting
from apps.monitoring.advisor import hardware, shapes, tuning
from apps.monitoring.advisor.devices import PRICE_NOTE, facts_of
from apps.monitoring.advisor.memory import MOMENTS
from apps.monitoring.buckets import PHASES
from apps.monitoring.charts import WINDOWS, Window, happened, moment_of, monitoring_charts, settled
from apps.monitoring.figures import Chart
from apps.monitoring.forms import HardwareForm
from apps.monitoring.models import Alert, Silence
from apps.monitoring.rules import ERRORS, P99
from apps.monitoring.selectors import alerts, open_first, timeseries, workers
from apps.monitoring.traces.store import are_kept
from apps.portal.pages import action, back, refuse
from apps.registry.models import ModelVersion
from apps.rest import source_of
from apps.serving.answer_log import answers
from apps.serving.autoscaler import is_on
from apps.serving.models import Answer, ScalingDecision

SECTION = "monitoring"
SLOWEST_SHOWN = 12
ALERTS_SHOWN = 8
SILENT_MINUTES = 60
DECISIONS_SHOWN = 6
VERSIONS_SHOWN = 50
ROLES = ("web", "jobs", "inference")
SLOWEST_OF_SECONDS = 86_400  # at most: a year's would be looked for among all answers that there are
COLUMNS = (
    "time", "requests", "qps", "p50_ms", "p95_ms", "p99_ms", "first_token_p50_ms", "first_token_p99_ms", *(f"phase_{name}_ms" for name in PHASES),
    "error_rate", "refused", "refused_rate", "cache_hit_rate", "tokens_per_second", "batch_size", "queue_depth", "replicas", "memory_bytes",
)  # fmt: skip


def _window(asked: QueryDict) -> Window:
    return WINDOWS.get(asked.get("window", ""), WINDOWS["1h"])


def _version(asked: QueryDict) -> ModelVersion | None:
    return ModelVersion.objects.filter(pk=asked["version"]).first() if asked.get("version") else None


@login_required
def monitoring(request: HttpRequest) -> HttpResponse:
    window, chosen = _window(request.GET), _version(request.GET)
    values = {
        "section": SECTION,
        "window": window,
        "windows": WINDOWS.values(),
        "version": chosen,
        "alerts": list(open_first(alerts())[:ALERTS_SHOWN]),
    }
    values["firing"] = [alert for alert in values["alerts"] if alert.state != Alert.State.RESOLVED]
    values["workers"], values["silences"] = _workers(), list(alerting.silences())
    values["silent"] = {row.rule for row in values["silences"]}
    values |= {"scaling": list(ScalingDecision.objects.all()[:DECISIONS_SHOWN]), "most_replicas": settings.MAX_REPLICAS, "scales": is_on()}
    if request.GET.get("fragment") == "now":
        return render(request, "monitoring/_now.html", values)
    served = ModelVersion.objects.filter(deployments__isnull=False).distinct().order_by("-id")
    at = moment_of(request.GET.get("at", ""))
    values |= {
        "versions": served[:VERSIONS_SHOWN], "at": at, "until": at + timedelta(seconds=window.step) if at else None,
        "slowest": _slowest(window, chosen, at),
    }  # fmt: skip
    values |= {"p99_rule": P99, "error_rule": ERRORS}
    values["slowest_of_a_day"] = not at and window.seconds > SLOWEST_OF_SECONDS
    values["followed"] = _followed(values["slowest"])
    if request.GET.get("tables") and values["workers"] is not None:  # for reading without scripts
        values["drawn"] = _charts(window, chosen)
    return render(request, "monitoring/monitoring.html", values)


def _workers() -> list[tuple[str, list[str]]] | None:
    """Names by role; None while Redis cannot be asked."""
    try:
        return [(role, workers(role)) for role in ROLES]
    except redis.RedisError:
        return None


def _slowest(window: Window, version: ModelVersion | None, at) -> list[Answer]:
    """Of the window, or of the one point that was clicked."""
    since = at or timezone.now() - timedelta(seconds=min(window.seconds, SLOWEST_OF_SECONDS))
    rows = answers().filter(created_at__gte=since)
    if at:
        rows = rows.filter(created_at__lt=at + timedelta(seconds=window.step))
    if version:
        rows = rows.filter(model_version=version)
    return list(rows.select_related("model_version", "user").order_by("-latency_ms")[:SLOWEST_SHOWN])


def _followed(answers: list[Answer]) -> set[str]:
    """Those whose phases can be looked at."""
    try:
        return are_kept([answer.pk for answer in answers])
    except redis.RedisError:
        return set()


def _charts(window: Window, version: ModelVersion | None) -> dict[str, Chart]:
    points = settled(timeseries(window=window.seconds, step=window.step, version=version.pk if version else None))
    return monitoring_charts(points, window, version, happened(window), _point_link(window, version))


@login_required
def monitoring_charts_data(request: HttpRequest) -> JsonResponse:
    window, version = _window(request.GET), _version(request.GET)
    key = f"charts:{window.name}:{version.pk if version else ''}:{get_language()}"
    try:
        found = cache.get(key)
        if found is None:
            charts = _charts(window, version)
            found = {"charts": {name: chart.as_json() for name, chart in charts.items()}}
            cache.set(key, found, window.every // 2)  # many readers, one reading of the counters
    except redis.RedisError:
        return JsonResponse({"detail": "The counters cannot be read at the moment."}, status=503)
    return JsonResponse(found)


def _point_link(window: Window, version: ModelVersion | None) -> str:
    return f"?window={window.name}{f'&version={version.pk}' if version else ''}&at={{x}}#slowest"


@login_required
def monitoring_export(request: HttpRequest) -> HttpResponse:
    """The points of the charts as CSV; times in UTC, latencies in milliseconds, rates as shares."""
    window, version = _window(request.GET), _version(request.GET)
    points = timeseries(window=window.seconds, step=window.step, version=version.pk if version else None)
    response = StreamingHttpResponse(_csv(points), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="dsportal-{version.name if version else "all"}-{window.name}.csv"'
    return response


class _Line:
    """What csv.writer writes to: gives the line back."""

    def write(self, text: str) -> str:
        return text


def _csv(points: list[dict]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(COLUMNS)
    for point in points:
        yield writer.writerow(["" if point[name] is None else point[name] for name in COLUMNS])


@action
def alert_acknowledge(request: HttpRequest, pk: str) -> HttpResponse:
    alerting.acknowledge(alert=get_object_or_404(Alert, pk=pk), actor=request.user, source=source_of(request))
    return back(request, "monitoring")


@action
def silence_start(request: HttpRequest) -> HttpResponse:
    alerting.silence(rule=request.POST.get("rule", ""), minutes=SILENT_MINUTES, actor=request.user, source=source_of(request))
    return back(request, "monitoring")


@action
def silence_end(request: HttpRequest, pk: str) -> HttpResponse:
    alerting.end_silence(row=get_object_or_404(Silence, pk=pk), actor=request.user, source=source_of(request))
    return back(request, "monitoring")


@login_required
def advisor(request: HttpRequest) -> HttpResponse:
    """`?tab=hardware`, the form's fields in the address; or `?tab=tuning&version=`."""
    if request.GET.get("tab") == "tuning":
        return _tuning(request)
    form = HardwareForm.standing(request.GET)
    advice = None
    if form.is_valid():
        try:
            advice = hardware.advise(shape=_shape(form.cleaned_data["model"]), **form.question())
        except Problem as problem:
            refuse(form, problem)
    values = {
        "section": "advisor", "tab": "hardware", "form": form, "advice": advice, "of_training": [form[name] for name in form.TRAINING],
        "of_serving": [form[name] for name in form.SERVING], "price_note": PRICE_NOTE,
        "devices": [(d, facts_of(d.device, advice.precision)) for d in advice.devices] if advice else [],
        "moment": MOMENTS[advice.moment] if advice and advice.moment else "",
        "mission_lines": list(zip(advice.mission.claimed, advice.mission.yours, strict=True)) if advice else [],
    }  # fmt: skip
    return render(request, "monitoring/advisor.html", values, status=400 if form.errors else 200)


def _shape(model: str) -> shapes.Shape:
    kind, _colon, name = model.partition(":")
    if kind == "version":
        return shapes.shape_of_version(get_object_or_404(ModelVersion, pk=name))
    return shapes.shape_of_preset(name)


def _tuning(request: HttpRequest) -> HttpResponse:
    versions = list(ModelVersion.objects.select_related("parent", "training_job").order_by("-id")[:VERSIONS_SHOWN])
    live = next((v for v in versions if v.state == ModelVersion.State.LIVE), None)
    asked = request.GET.get("version", "")
    chosen = next((v for v in versions if v.pk == asked), None) or live or (versions[0] if versions else None)
    values = {
        "section": "advisor",
        "tab": "tuning",
        "versions": versions,
        "version": chosen,
        "recommendations": tuning.advise(chosen) if chosen else [],
    }
    return render(request, "monitoring/advisor.html", values)
