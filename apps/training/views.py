from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext_lazy as _

from apps.accounts.problems import Problem
from apps.datasets.models import Dataset
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.monitoring.figures import Chart
from apps.portal.pages import action, page_of, refuse
from apps.registry.expertise import chosen_layer, layers_to_choose
from apps.registry.models import ModelVersion
from apps.rest import source_of
from apps.training import services
from apps.training.admission import changes_of, configuration_of
from apps.training.charts import compare_chart, job_charts, name_of
from apps.training.estimates import CHECKPOINTING, EXPERTS, MICRO_BATCH, estimate, pairs_of
from apps.training.forms import StartForm
from apps.training.history import evaluations, history, samples
from apps.training.models import TrainingJob
from apps.training.selectors import preset, presets, training_jobs

SECTION = "training"
ROWS = 25
MOST_COMPARED = 6
COLUMNS = {
    "loss": _("Loss"),
    "tokens_per_second": _("Tokens/s"),
    "grad_norm": _("Gradient norm"),
    "expert_load_max_over_mean": _("Expert load, max/mean"),
}
SCHEDULERS = [("jobset", "JobSet"), ("trainjob", "Kubeflow TrainJob"), ("slurm", "Slurm")]
UNITS = {"step": _("by step"), "elapsed": _("by time")}


@login_required
def training(request: HttpRequest) -> HttpResponse:
    rows = training_jobs()
    for name in ("status", "preset", "dataset"):
        if value := request.GET.get(name):
            rows = rows.filter(**{name: value})
    values = {
        "section": SECTION, "page": page_of(rows, request, ROWS), "statuses": Job.Status.choices, "presets": presets(),
        "datasets": Dataset.objects.filter(training_jobs__isnull=False).distinct().order_by("name")[:100],
        "filtered": any(request.GET.get(name) for name in ("status", "preset", "dataset")), "most_compared": MOST_COMPARED,
    }  # fmt: skip
    values["live"] = any(job.is_active for job in values["page"].rows)
    template = "training/_rows.html" if request.GET.get("fragment") == "rows" else "training/list.html"
    return render(request, template, values)


@login_required
def training_new(request: HttpRequest) -> HttpResponse:
    """The form. `?clone=JOB` fills it with another run's values, `?dataset=` and `?parent=` with these."""
    if not request.user.may_operate:
        raise PermissionDenied
    source = TrainingJob.objects.filter(pk=request.POST.get("clone") or request.GET.get("clone") or "").first()
    asked = {name: request.GET[name] for name in StartForm.base_fields if request.GET.get(name)}
    form = StartForm(request.POST or None, initial={**(StartForm.initial_of(source) if source else {}), **asked})
    if request.method == "POST" and form.is_valid():
        try:
            job = services.start(**form.asked(), options=source.options if source else None, actor=request.user, source=source_of(request))
            return redirect("training_job", job.pk)
        except Problem as problem:
            if problem.field in ("minutes", "steps"):
                problem.field = "amount"
            refuse(form, problem)
    values = {
        "section": SECTION, "form": form, "presets": presets(), "source": source, "advanced": [form[name] for name in form.ADVANCED],
        "advanced_open": any(form[name].errors for name in form.ADVANCED) or source is not None or "micro_batch" in request.GET,
        "chosen": str(form["preset"].value()), **_estimate(form),
    }  # fmt: skip
    return render(request, "training/new.html", values, status=400 if form.errors else 200)


@login_required
def training_estimate(request: HttpRequest) -> HttpResponse:
    return render(request, "training/_estimate.html", _estimate(StartForm(request.GET)))


def _estimate(form: StartForm) -> dict[str, Any]:
    """What the estimate's part of the page shows, for what the form holds now; nothing while that makes no sense."""

    def number(name: str, kind: type, default):
        try:
            return kind(form[name].value())
        except (TypeError, ValueError):
            return default

    chosen, amount = preset(str(form["preset"].value())), number("amount", float, 0.0)
    if chosen is None or not amount > 0:
        return {"estimate": None}
    by_steps = form["unit"].value() == "steps"
    picked = str(form["dataset"].value() or next((value for value, _label in form.fields["dataset"].choices), ""))
    dataset = Dataset.objects.filter(pk=picked).select_related("current_run").first()
    parent = ModelVersion.objects.filter(pk=str(form["parent"].value() or "")).first()
    source = TrainingJob.objects.filter(pk=str(form["clone"].value() or "")).first()
    spec = {**(source.options.get("spec", {}) if source else {}), "micro_batch": max(1, number("micro_batch", int, MICRO_BATCH))}
    spec[CHECKPOINTING] = form[CHECKPOINTING].value() in (True, "True", "on")
    spec[EXPERTS] = max(1, number(EXPERTS, int, 1))
    spec |= {"optimizer": "adamw" if form["optimizer"].value() == "adamw" else "muon", "ema_decay": number("ema_decay", float, 0.0)}
    configuration = configuration_of(
        preset=chosen["name"], precision=str(form["precision"].value()), accum_steps=max(1, number("accum_steps", int, 1)),
        world_size=max(1, number("world_size", int, 1)), zero_stage=number("zero_stage", int, 0), options={"spec": spec},
        lora_rank=number("lora_rank", int, 8) if form["method"].value() == TrainingJob.Method.LORA else 0,
        pairs=pairs_of(dataset, objective=str(form["objective"].value() or TrainingJob.Objective.SFT)),
    )  # fmt: skip
    found = estimate(
        configuration=configuration, minutes=None if by_steps else amount, steps=max(1, round(amount)) if by_steps else None, dataset=dataset,
        parent=parent,
    )  # fmt: skip
    if found is None or found.nearest is None:
        return {"estimate": found}
    changes = changes_of(configuration, found.nearest)
    held = {name: form[name].value() for name in form.fields if form[name].value() not in (None, "")}
    return {
        "estimate": found, "apply": urlencode({**held, **changes}),
        "changes": [(form.fields[name].label if name in form.fields else name, value) for name, value in changes.items()],
    }  # fmt: skip


def _job(pk: str) -> TrainingJob:
    return get_object_or_404(training_jobs().select_related("run"), pk=pk)


@login_required
def training_job(request: HttpRequest, pk: str) -> HttpResponse:
    job = _job(pk)
    values = {"section": SECTION, "job": job, "samples": samples(job.pk), "version": getattr(job, "model_version", None)}
    if request.GET.get("fragment") == "status":
        response = render(request, "training/_status.html", values)
        if not job.is_active:  # the page has more to show now: the version, the finished charts
            response["HX-Refresh"] = "true"
        return response
    values |= {
        "preset": preset(job.preset), "spec": services.spec_text(job), "layers": layers_to_choose(job.result),
        "layer": chosen_layer(job.result, request.GET.get("layer")), "every": 2 if job.is_active else 0, "schedulers": SCHEDULERS,
    }  # fmt: skip
    if request.GET.get("tables"):  # for reading without scripts
        values["drawn"] = job_charts(job, history(job.pk), evaluations(job.pk), values["layer"])
    return render(request, "training/job.html", values)


@login_required
def training_charts(request: HttpRequest, pk: str) -> JsonResponse:
    job = _job(pk)
    layer = chosen_layer(job.result, request.GET.get("layer"))
    return JsonResponse({"charts": {name: chart.as_json() for name, chart in job_charts(job, history(job.pk), evaluations(job.pk), layer).items()}})


def _compared(request: HttpRequest) -> list[TrainingJob]:
    asked = list(dict.fromkeys(request.GET.getlist("job")))[:MOST_COMPARED]
    found = training_jobs().in_bulk(asked)
    return [found[pk] for pk in asked if pk in found]


@login_required
def training_compare(request: HttpRequest) -> HttpResponse:
    chosen = _compared(request)
    shown = {job.pk for job in chosen}
    values = {
        "section": SECTION, "jobs": [(job, name_of(job)) for job in chosen], "most_compared": MOST_COMPARED,
        "others": [] if len(chosen) >= MOST_COMPARED else [job for job in training_jobs()[:20] if job.pk not in shown],
        "columns": COLUMNS.items(), "column": _of(request.GET.get("show"), COLUMNS), "units": UNITS.items(), "over": _of(request.GET.get("over"), UNITS),
        "every": 3 if any(job.is_active for job in chosen) else 0, "too_many": len(set(request.GET.getlist("job"))) > MOST_COMPARED,
    }  # fmt: skip
    if request.GET.get("tables"):
        values["drawn"] = {"chart": _comparison(request, chosen)}
    return render(request, "training/compare.html", values)


@login_required
def training_compare_chart(request: HttpRequest) -> JsonResponse:
    return JsonResponse(_comparison(request, _compared(request)).as_json())


def _comparison(request: HttpRequest, chosen: list[TrainingJob]) -> Chart:
    column, over = _of(request.GET.get("show"), COLUMNS), _of(request.GET.get("over"), UNITS)
    return compare_chart(chosen, [history(job.pk) for job in chosen], column=column, over=over)


def _of(value: str | None, known: dict) -> str:
    return value if value in known else next(iter(known))


@action
def training_cancel(request: HttpRequest, pk: str) -> HttpResponse:
    jobs.cancel(job=_job(pk), actor=request.user, source=source_of(request))
    return redirect("training_job", pk)


@action
def training_resume(request: HttpRequest, pk: str) -> HttpResponse:
    jobs.resume(job=_job(pk), actor=request.user, source=source_of(request))
    return redirect("training_job", pk)
