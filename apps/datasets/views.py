"""The pages of datasets: the list with its upload, one dataset's report, and what is inside it."""

from dataclasses import dataclass
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _

from apps import artifacts
from apps.accounts.problems import Problem
from apps.datasets import presentation, selectors, services
from apps.datasets.forms import UploadForm
from apps.datasets.models import Dataset, ProcessingRun
from apps.datasets.selectors import RecordFilter
from apps.jobs import services as jobs
from apps.portal.pages import action, page_of, refuse
from apps.rest import source_of

FILES = {
    "train.jsonl": "application/jsonl",
    "eval.jsonl": "application/jsonl",
    "records.parquet": "application/vnd.apache.parquet",
    "report.json": "application/json",
}
SAMPLES = 12


# -- the list


@login_required
def datasets(request: HttpRequest) -> HttpResponse:
    form = UploadForm()
    if request.method == "POST":
        if not request.user.may_operate:
            raise PermissionDenied
        form = UploadForm(request.POST, request.FILES)
        if form.is_valid():
            try:
                return _uploaded(request, form)
            except Problem as problem:
                refuse(form, problem)
    rows = selectors.datasets()
    if wanted := request.GET.get("q", "").strip():
        rows = rows.filter(name__icontains=wanted)
    page = page_of(rows, request)
    runs: dict[str, ProcessingRun] = {}
    for run in ProcessingRun.objects.filter(dataset__in=[row.pk for row in page.rows]).defer("report").order_by("-id"):
        runs.setdefault(run.dataset_id, run)
    for row in page.rows:
        row.latest_run = runs.get(row.pk)
    values = {
        "section": "datasets", "form": form, "page": page, "active": any(run.is_active for run in runs.values()),
        "max_bytes": settings.MAX_UPLOAD_BYTES,
    }  # fmt: skip
    return render(request, "datasets/_table.html" if "fragment" in request.GET else "datasets/list.html", values)


def _uploaded(request: HttpRequest, form: UploadForm) -> HttpResponse:
    source, given = source_of(request), form.cleaned_data
    dataset = services.create_from_upload(name=given["name"], upload=given["file"], actor=request.user, source=source)
    if given["process"]:
        services.process(dataset=dataset, actor=request.user, source=source)
        messages.success(request, _("“%(name)s” was received and is being processed.") % {"name": dataset.name})
    else:
        messages.success(request, _("“%(name)s” was received. Process it to train on it.") % {"name": dataset.name})
    return redirect("dataset", dataset.pk)


# -- one dataset


@dataclass(frozen=True)
class Tab:
    name: str
    label: str
    url: str
    count: int | None = None


def _frame(pk: str, tab: str) -> dict:
    """What every page of one dataset shows: the row, its runs, the tabs."""
    dataset = get_object_or_404(selectors.datasets(), pk=pk)
    run, latest = dataset.current_run, selectors.latest_run(dataset)
    values = {"section": "datasets", "dataset": dataset, "run": run, "latest": latest, "tab": tab, "tabs": []}
    if run:
        report = run.report
        kinds = report.get("kinds", {})
        counts = {
            "dataset_cleaned": report.get("repaired"), "dataset_duplicates": report.get("duplicates", {}).get("clusters"),
            "dataset_questions": kinds.get("question"), "dataset_negatives": sum(report.get("negatives", {}).values()),
        }  # fmt: skip
        labels = {
            "dataset": _("Report"), "dataset_cleaned": _("Before and after"), "dataset_duplicates": _("Duplicates"), "dataset_questions": _("Questions"),
            "dataset_negatives": _("Negatives"), "dataset_records": _("Records"),
        }  # fmt: skip
        values["tabs"] = [Tab(name, text, reverse(name, args=[pk]), counts.get(name)) for name, text in labels.items()]
    return values


def _require_run(values: dict) -> ProcessingRun:
    if values["run"] is None:
        raise Http404
    return values["run"]


@login_required
def dataset(request: HttpRequest, pk: str) -> HttpResponse:
    values = _frame(pk, "dataset")
    latest, run = values["latest"], values["run"]
    if "fragment" in request.GET:  # asked for while a run is active: once it is over, the whole page is another
        over = latest is None or not latest.is_active
        return HttpResponse(headers={"HX-Refresh": "true"}) if over else render(request, "datasets/_job.html", values)
    if run:
        report = run.report
        values |= {
            "report": report,
            "funnel": presentation.funnel(report, selectors.drops(run)),
            "domains": presentation.shares(report.get("domains", {})),
            "languages": presentation.shares(report.get("languages", {}), presentation.LANGUAGES),
            "kinds": presentation.shares(report.get("kinds", {}), presentation.KINDS),
            "files": list(FILES),
        }
    return render(request, "datasets/detail.html", values)


@action
def dataset_process(request: HttpRequest, pk: str) -> HttpResponse:
    row = get_object_or_404(Dataset, pk=pk)
    services.process(dataset=row, actor=request.user, source=source_of(request))
    messages.success(request, _("“%(name)s” is being processed.") % {"name": row.name})
    return redirect("dataset", pk)


@action
def dataset_cancel(request: HttpRequest, pk: str) -> HttpResponse:
    jobs.cancel(job=_latest_run(pk), actor=request.user, source=source_of(request))
    return redirect("dataset", pk)


@action
def dataset_resume(request: HttpRequest, pk: str) -> HttpResponse:
    jobs.resume(job=_latest_run(pk), actor=request.user, source=source_of(request))
    return redirect("dataset", pk)


def _latest_run(pk: str) -> ProcessingRun:
    run = selectors.latest_run(get_object_or_404(Dataset, pk=pk))
    if run is None:
        raise Http404
    return run


# -- what is inside


def _cursor(request: HttpRequest, name: str = "after") -> int | None:
    value = request.GET.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 16 else None


def _more(request: HttpRequest, **cursor: int) -> str:
    values = {name: value for name, value in request.GET.items() if value and name not in ("after", "before")}
    return f"?{urlencode({**values, **cursor})}"


@login_required
def dataset_cleaned(request: HttpRequest, pk: str) -> HttpResponse:
    values = _frame(pk, "dataset_cleaned")
    rows, following = selectors.repaired(_require_run(values), after=_cursor(request) or -1, limit=SAMPLES)
    for row in rows:
        row["pieces"], row["long"] = presentation.marked(row["original"], row["text"])
    return render(
        request, "datasets/cleaned.html", {**values, "rows": rows, "more": _more(request, after=following) if following is not None else None}
    )


@login_required
def dataset_duplicates(request: HttpRequest, pk: str) -> HttpResponse:
    values = _frame(pk, "dataset_duplicates")
    after = _cursor(request)
    clusters, following = selectors.clusters(_require_run(values), after=-1 if after is None else after, limit=SAMPLES)
    for cluster in clusters:
        for row in cluster.dropped:
            row["reason_label"] = presentation.label(presentation.REASONS, row["reason"])
            kept = (cluster.kept or {}).get("text") or ""
            row["pieces"], _long = presentation.marked(row["text"] or "", kept) if row["text"] and kept else ([], False)
    more = _more(request, after=following) if following is not None else None
    return render(request, "datasets/duplicates.html", {**values, "clusters": clusters, "more": more})


@login_required
def dataset_questions(request: HttpRequest, pk: str) -> HttpResponse:
    return _made(request, pk, "dataset_questions", "question")


@login_required
def dataset_negatives(request: HttpRequest, pk: str) -> HttpResponse:
    return _made(request, pk, "dataset_negatives", "claim")


def _made(request: HttpRequest, pk: str, tab: str, kind: str) -> HttpResponse:
    values = _frame(pk, tab)
    after = _cursor(request)
    sources, following = selectors.made_of_entries(
        _require_run(values), kind, false_only=kind == "claim", after=-1 if after is None else after, limit=SAMPLES
    )
    for source in sources:
        for row in source.made:
            row["variant_label"] = presentation.label(presentation.VARIANTS, row["variant"])
    more = _more(request, after=following) if following is not None else None
    return render(request, "datasets/made.html", {**values, "sources": sources, "more": more, "kind": kind})


@login_required
def dataset_records(request: HttpRequest, pk: str) -> HttpResponse:
    values = _frame(pk, "dataset_records")
    run = _require_run(values)
    asked = {name: request.GET.get(name, "").strip()[:200] for name in ("stage", "reason", "domain", "kind", "lang", "split", "q")}
    found = selectors.records(run, RecordFilter(**asked), after=_cursor(request), before=_cursor(request, "before"))
    for row in found.records:
        row["reason_label"] = presentation.label(presentation.REASONS, row["reason"]) if row["reason"] else ""
        row["kind_label"] = presentation.label(presentation.KINDS, row["kind"])
        row["stage_label"] = presentation.label(presentation.STAGES, row["stage"])
    report = run.report
    page = {
        "shown": found.shown,
        "next": _more(request, after=found.after) if found.after is not None else None,
        "previous": _more(request, before=found.before) if found.before is not None else None,
    }
    choices = {
        "stage": [(name, presentation.label(presentation.STAGES, name)) for name in [*selectors.drops(run), "used"]],
        "reason": [(name, presentation.label(presentation.REASONS, name)) for name in report.get("reasons", {})],
        "domain": [(name, name) for name in sorted(report.get("domains", {}))],
        "kind": list(presentation.KINDS.items()),
    }
    filters = [(name, any_label, asked[name], choices[name]) for name, any_label in (
        ("stage", _("Any stage")), ("reason", _("Any reason")), ("kind", _("Any kind")), ("domain", _("Any domain")),
    )]  # fmt: skip
    return render(
        request, "datasets/records.html", {**values, "found": found, "page": page, "filters": filters, "asked": asked, "any": any(asked.values())}
    )


@login_required
def dataset_file(request: HttpRequest, pk: str, name: str) -> StreamingHttpResponse:
    row = get_object_or_404(selectors.datasets(), pk=pk)
    if name not in FILES or row.current_run is None:
        raise Http404
    headers = {"Content-Disposition": f'attachment; filename="{row.pk}-{name}"'}
    return StreamingHttpResponse(artifacts.read_chunks(f"{row.current_run.folder}/{name}"), content_type=FILES[name], headers=headers)
