from datetime import timedelta

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from apps import artifacts
from apps.accounts.problems import Conflict, Problem
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.monitoring.figures import Chart
from apps.portal.pages import action, back, page_of, refuse
from apps.registry import drafts, exports, imports, services
from apps.registry.answers import VIEWS, pairs
from apps.registry.charts import variants
from apps.registry.expertise import chosen_layer, expertise_charts, layers_to_choose
from apps.registry.figures import figures_told
from apps.registry.forms import FIELDS, CompressForm, ImportForm
from apps.registry.job_charts import chart_note, chart_title, job_chart
from apps.registry.listing import SORTS, listing, sort_link
from apps.registry.models import CompressionJob, Evaluation, ImportJob, ModelVersion
from apps.registry.presentation import domain_lines, gate_lines, lineage_nodes
from apps.registry.selectors import comparable_evaluations, family, latest_evaluation, lineage, versions
from apps.registry.upstream_access import health_of
from apps.rest import source_of
from apps.serving.models import Deployment
from workers.compression.applicable import applicable, unexportable
from workers.moe.families import FAMILIES

CHILDREN_SHOWN = 12
IMPORTS_SHOWN = 10
IMPORTABLE = sorted({family.model_type for family in FAMILIES})
HISTORY_SHOWN = 20
FAILURE_SHOWN = timedelta(hours=1)
ANSWERS_SHOWN = 5
ANSWERS_ROWS = 50
VARIANTS_SHOWN = 120
METHOD_NOTES = {
    "int8": gettext_lazy("Weights in 8 bits: a quarter of the size, faster, nearly the same answers. Seconds."),
    "prune": gettext_lazy("Small weights become zero: smaller when stored."),
    "distill": gettext_lazy("A smaller student learns from this version's answers. Minutes."),
    "onnx": gettext_lazy("The same model for other platforms, in one file."),
    "policy": gettext_lazy("One click: quantizes first, and prunes or distils only if the quality falls short."),
}
METHODS_AT_ONCE = (CompressionJob.Method.INT8, CompressionJob.Method.ONNX, CompressionJob.Method.POLICY)


@login_required
def models(request: HttpRequest) -> HttpResponse:
    found = listing(request.GET)
    values = {
        "section": "models", "listing": found, "rows": [(version, latest_evaluation(version)) for version in found.rows],
        "sorts": {name: sort_link(request.GET, found, name) for name in SORTS}, "states": ModelVersion.State.choices, "kinds": ModelVersion.Kind.choices,
        "filtered": any(request.GET.get(name) for name in ("state", "kind", "q")),
    }  # fmt: skip
    return render(request, "registry/_versions.html" if request.GET.get("fragment") == "rows" else "registry/list.html", values)


@login_required
def import_model(request: HttpRequest) -> HttpResponse:
    """The form, and the imports so far. `?fragment=jobs` is the latter."""
    if not request.user.may_operate:
        raise PermissionDenied
    form = ImportForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        given = form.cleaned_data
        who = {"parent": given["parent"], "actor": request.user, "source": source_of(request)}
        try:
            if given["files"]:
                imports.import_uploads(name=given["name"], uploads=given["files"], **who)
            else:
                imports.import_model(name=given["name"], path=given["path"], **who)
            return redirect("model_import")
        except Problem as problem:
            refuse(form, problem)
    jobs_shown = list(ImportJob.objects.select_related("model_version").order_by("-pk")[:IMPORTS_SHOWN])
    values = {
        "section": "models", "form": form, "jobs": jobs_shown, "active": any(job.is_active for job in jobs_shown),
        "families": IMPORTABLE, "urls": settings.IMPORT_URLS,
    }  # fmt: skip
    return render(request, "registry/_imports.html" if request.GET.get("fragment") == "jobs" else "registry/import.html", values)


def _version(pk: str) -> ModelVersion:
    return get_object_or_404(versions().select_related("parent", "training_job", "compression_job", "run__dataset", "created_by"), pk=pk)


def _working(version: ModelVersion) -> list[Job]:
    """The evaluations and compressions of this version that are under way, and its last one that failed after the last success."""
    of_version = Q(evaluation__model_version=version) | Q(compressionjob__model_version=version)
    return list(Job.objects.filter(of_version, status__in=(Job.Status.QUEUED, Job.Status.RUNNING, Job.Status.FAILED)).order_by("-pk")[:10])


@login_required
def version(request: HttpRequest, pk: str) -> HttpResponse:
    """Everything about one version. `?fragment=work` is its jobs' progress, `?fragment=watch&seen=` tells whether the page is out of date."""
    row = _version(pk)
    recent = _working(row)
    active = [job for job in recent if job.is_active]
    decisions = list(row.gate_decisions.select_related("baseline", "evaluation_set")[:HISTORY_SHOWN])
    own = latest_evaluation(row)
    seen = "-".join([row.state, own.pk[-8:] if own else "", decisions[0].pk[-8:] if decisions else "", str(len(active))])
    if request.GET.get("fragment"):
        if request.GET.get("seen") != seen:
            response = HttpResponse(status=204)
            response["HX-Refresh"] = "true"
            return response
        return render(request, "registry/_work.html", {"version": row, "active": active, "seen": seen}) if active else HttpResponse(status=204)
    decision = decisions[0] if decisions else None
    baseline = (decision.baseline if decision else None) or (row.parent if row.is_compressed else None)
    theirs = _evaluation_of(baseline, own)
    live = row if row.state == ModelVersion.State.LIVE else ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()
    relatives = family(row)
    deployments = list(row.deployments.select_related("created_by")[:HISTORY_SHOWN])
    values = {
        "section": "models", "version": row, "evaluation": own, "decision": decision, "gate": gate_lines(decision) if decision else [],
        "baseline": baseline, "baseline_evaluation": theirs, "live": live, "before": _before(row) if live == row else None,
        "domains": domain_lines(own, theirs), "answers": pairs(own, theirs)[:ANSWERS_SHOWN] if own else [], "active": active, "seen": seen,
        "failed": next((job for job in recent if job.status == Job.Status.FAILED and not _is_stale(job, own)), None),
        "nodes": lineage_nodes(lineage(row), _children(row, relatives)), "deployments": deployments, "decisions": decisions,
        "methods": [(m, m.label) for m in METHODS_AT_ONCE if applicable(row.kind, m, row.config) is None], "compressible": applicable(row.kind, "prune") is None,
        "exportable": unexportable(row.kind, row.details) is None,
        "health": health_of([row]).get(row.pk) if row.kind == ModelVersion.Kind.UPSTREAM else None,
        "drafts": drafts.possible_drafts(row, relatives), "drafting": drafts.drafting(row),
        "layers": layers_to_choose(row.details), "layer": chosen_layer(row.details, request.GET.get("layer")),
    }  # fmt: skip
    if request.GET.get("tables"):  # for reading without scripts
        values["drawn"] = expertise_charts(row.details, values["layer"])
    return render(request, "registry/version.html", values)


@login_required
def version_charts(request: HttpRequest, pk: str) -> JsonResponse:
    """Which experts learnt what."""
    details = get_object_or_404(ModelVersion, pk=pk).details
    charts = expertise_charts(details, chosen_layer(details, request.GET.get("layer")))
    return JsonResponse({"charts": {name: chart.as_json() for name, chart in charts.items()}})


def _evaluation_of(baseline: ModelVersion | None, own: Evaluation | None) -> Evaluation | None:
    """The baseline's on the same set, the only one that compares."""
    if baseline is None or own is None:
        return None
    rows = Evaluation.objects.filter(model_version=baseline, evaluation_set=own.evaluation_set_id, status=Job.Status.SUCCEEDED)
    return rows.order_by("-pk").first()


def _children(version: ModelVersion, relatives: list[ModelVersion]) -> list[ModelVersion]:
    """The newest."""
    return sorted((each for each in relatives if each.parent_id == version.pk), key=lambda each: each.pk, reverse=True)[:CHILDREN_SHOWN]


def _before(live: ModelVersion) -> ModelVersion | None:
    """What a roll-back would bring back."""
    found = Deployment.objects.exclude(model_version=live).order_by("-id").select_related("model_version").first()
    return found.model_version if found else None


def _is_stale(job: Job, own: Evaluation | None) -> bool:
    """A failed evaluation that was done again is history, and so is a compression that failed some time ago."""
    if job.kind == Job.Kind.EVALUATION:
        return own is not None and own.pk > job.pk
    return job.finished_at is None or timezone.now() - job.finished_at > FAILURE_SHOWN


@login_required
def version_answers(request: HttpRequest, pk: str) -> HttpResponse:
    row = _version(pk)
    own = latest_evaluation(row)
    decision = row.gate_decisions.select_related("baseline").first()
    baseline = decision.baseline if decision else None
    theirs = _evaluation_of(baseline, own)
    view = request.GET.get("view") if request.GET.get("view") in VIEWS else VIEWS[0]
    found = pairs(own, theirs, view=view, domain=request.GET.get("domain", ""))
    number = int(request.GET["page"]) if request.GET.get("page", "").isdecimal() else 1
    shown = found[max(0, number - 1) * ANSWERS_ROWS : max(1, number) * ANSWERS_ROWS]
    views = [("worst", _("Worst first")), *([("lost", _("Lost most"))] if theirs else []), ("claims", _("Claims"))]
    values = {
        "section": "models", "version": row, "evaluation": own, "baseline": baseline if theirs else None, "views": views, "view": view, "shown": shown,
        "total": len(found), "number": number, "more": len(found) > number * ANSWERS_ROWS,
        "domains": sorted(own.metrics.get("per_domain", {})) if own else [],
    }  # fmt: skip
    return render(request, "registry/answers.html", values)


@login_required
def version_file(request: HttpRequest, pk: str, name: str) -> StreamingHttpResponse:
    row = get_object_or_404(ModelVersion, pk=pk)
    entry = next((file for file in row.files if file["name"] == name), None)  # only what the row names: a path leads nowhere else
    if entry is None:
        raise Http404
    response = StreamingHttpResponse(artifacts.read_chunks(f"{row.folder}/{name}"), content_type="application/octet-stream")
    response["Content-Length"] = entry["bytes"]
    response["Content-Disposition"] = f'attachment; filename="{row.name}-{name.rsplit("/", 1)[-1]}"'
    return response


@login_required
def version_w8a8(request: HttpRequest, pk: str) -> HttpResponseBase:
    try:
        return exports.w8a8(get_object_or_404(ModelVersion, pk=pk))
    except Problem as problem:
        messages.error(request, problem.detail)
        return redirect("version", pk)


@action
def promote(request: HttpRequest, pk: str) -> HttpResponse:
    row = get_object_or_404(ModelVersion, pk=pk)
    try:
        services.promote(version=row, actor=request.user, source=source_of(request))
    except Conflict as refusal:
        for reason in refusal.extra.get("reasons") or [refusal.detail]:
            messages.error(request, reason)
    else:
        messages.success(request, _("%(name)s is live.") % {"name": row.name})
    return redirect("version", pk)


@action
def rollback(request: HttpRequest, pk: str) -> HttpResponse:
    row = get_object_or_404(ModelVersion, pk=pk)
    deployment = services.rollback(version=row, actor=request.user, source=source_of(request))
    messages.success(request, _("%(name)s is live again.") % {"name": deployment.model_version.name})
    return redirect("version", deployment.model_version_id)


@action
def evaluate(request: HttpRequest, pk: str) -> HttpResponse:
    row = get_object_or_404(ModelVersion.objects.select_related("run"), pk=pk)
    services.evaluate(version=row, actor=request.user, source=source_of(request))
    return redirect("version", pk)


@action
def choose_draft(request: HttpRequest, pk: str) -> HttpResponse:
    row = get_object_or_404(ModelVersion.objects.select_related("draft"), pk=pk)
    chosen = request.POST.get("draft", "")
    draft = get_object_or_404(ModelVersion, pk=chosen) if chosen else None
    drafts.choose_draft(version=row, draft=draft, actor=request.user, source=source_of(request))
    said = _("%(draft)s guesses ahead for %(name)s.") if draft else _("Nobody guesses ahead for %(name)s.")
    messages.success(request, said % {"draft": draft.name if draft else "", "name": row.name})
    return redirect("version", pk)


@action
def compress(request: HttpRequest, pk: str) -> HttpResponse:
    """A method that needs no figures, straight from the version's menu."""
    row = get_object_or_404(ModelVersion, pk=pk)
    services.compress(version=row, method=request.POST.get("method", ""), options={}, actor=request.user, source=source_of(request))
    return redirect("version", pk)


@login_required
def compression(request: HttpRequest) -> HttpResponse:
    """The scatter, the form and the jobs. `?version=` chooses in the form; `?of=` shows one version's family only."""
    if request.method == "POST" and not request.user.may_operate:
        raise PermissionDenied
    chosen = request.GET.get("version") or ModelVersion.objects.filter(state=ModelVersion.State.LIVE).values_list("pk", flat=True).first()
    form = CompressForm(request.POST or None, initial={"version": chosen, "method": request.GET.get("method") or "int8"})
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            job = services.compress(
                version=data["version"], method=data["method"], options=form.options(), actor=request.user, source=source_of(request)
            )
            return redirect("compression_job", job.pk)
        except Problem as problem:
            refuse(form, problem)
    rows = CompressionJob.objects.select_related("model_version").prefetch_related("versions")
    page = page_of(rows, request, 15)
    families = ModelVersion.objects.filter(children__compression_job__isnull=False).distinct().order_by("-id")[:50]
    values = {
        "section": "compression", "form": form, "method_fields": [(m, [form[n] for n in FIELDS[m]]) for m in FIELDS if FIELDS[m]],
        "methods": [(value, label, METHOD_NOTES[value]) for value, label in CompressionJob.Method.choices], "chosen": str(form["method"].value()),
        "page": page, "families": families, "live": any(job.is_active for job in page.rows),
    }  # fmt: skip
    if request.GET.get("fragment") == "rows":
        return render(request, "registry/_compressions.html", values)
    if request.GET.get("tables"):  # for reading without scripts
        values["drawn"] = {"chart": _scatter(request)}
    return render(request, "registry/compression.html", values, status=400 if form.errors else 200)


@login_required
def compression_chart(request: HttpRequest) -> JsonResponse:
    return JsonResponse(_scatter(request).as_json())


def _scatter(request: HttpRequest) -> Chart:
    rows = versions().exclude(kind=ModelVersion.Kind.UPSTREAM)  # whose size nobody here knows
    if family := request.GET.get("of"):
        # A student that became INT8 is its teacher's grandchild.
        made = Q(parent=family, compression_job__isnull=False)
        rows = rows.filter(Q(pk=family) | made | Q(parent__parent=family, compression_job__isnull=False, parent__compression_job__isnull=False))
    found = comparable_evaluations(list(rows[:VARIANTS_SHOWN]))
    return variants([(row, evaluation) for row, evaluation in found if evaluation])


@login_required
def compression_job(request: HttpRequest, pk: str) -> HttpResponse:
    job = get_object_or_404(CompressionJob.objects.select_related("model_version", "created_by"), pk=pk)
    made = list(versions().filter(compression_job=job))
    parent = get_object_or_404(versions(), pk=job.model_version_id)
    (_, parent_evaluation), *judged = comparable_evaluations([parent, *made])
    values = {
        "section": "compression", "job": job, "made": judged, "parent_evaluation": parent_evaluation,
        "measured": figures_told(job.result.get("details", {})), "asked": figures_told(job.options), "chart_title": chart_title(job),
        "chart_note": chart_note(job),
    }  # fmt: skip
    if request.GET.get("fragment") == "status":
        response = render(request, "registry/_compression_status.html", values)
        if not job.is_active:
            response["HX-Refresh"] = "true"
        return response
    if request.GET.get("tables"):  # for reading without scripts
        values["drawn"] = {"job": job_chart(job)}
    return render(request, "registry/compression_job.html", values)


@login_required
def compression_job_chart(request: HttpRequest, pk: str) -> JsonResponse:
    return JsonResponse(job_chart(get_object_or_404(CompressionJob, pk=pk)).as_json())


@action
def job_cancel(request: HttpRequest, pk: str) -> HttpResponse:
    jobs.cancel(job=get_object_or_404(Job, pk=pk), actor=request.user, source=source_of(request))
    return back(request, "compression")


@action
def job_resume(request: HttpRequest, pk: str) -> HttpResponse:
    jobs.resume(job=get_object_or_404(Job, pk=pk), actor=request.user, source=source_of(request))
    return back(request, "compression")
