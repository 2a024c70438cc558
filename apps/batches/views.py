from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from apps import artifacts
from apps.accounts.problems import Problem
from apps.batches import services
from apps.batches.forms import BatchForm
from apps.batches.selectors import batches, first_answers
from apps.portal.pages import page_of, refuse
from apps.registry.models import ModelVersion
from apps.rest import source_of

ROWS = 15
ANSWERS_SHOWN = 8


@login_required
def batch_list(request: HttpRequest) -> HttpResponse:
    """The form and the batches. `?version=` and `?dataset=` choose in the form; `?fragment=rows` is the table."""
    if request.method == "POST" and not request.user.may_operate:
        raise PermissionDenied
    live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).values_list("pk", flat=True).first()
    form = BatchForm(
        request.POST or None, request.FILES or None, initial={"version": request.GET.get("version") or live, "dataset": request.GET.get("dataset")}
    )
    if request.method == "POST" and form.is_valid():
        given = dict(form.cleaned_data)
        upload = given.pop("file")
        try:
            job = services.start(upload=upload or None, **given, actor=request.user, source=source_of(request))
            return redirect("batch", job.pk)
        except Problem as problem:
            refuse(form, problem)
    page = page_of(batches(), request, ROWS)
    values = {"section": "models", "form": form, "page": page, "live": any(job.is_active for job in page.rows)}
    name = "batches/_rows.html" if request.GET.get("fragment") == "rows" else "batches/list.html"
    return render(request, name, values, status=400 if form.errors else 200)


@login_required
def batch(request: HttpRequest, pk: str) -> HttpResponse:
    """One batch. `?fragment=status` is its progress."""
    job = get_object_or_404(batches(), pk=pk)
    values = {"section": "models", "job": job}
    if request.GET.get("fragment") == "status":
        response = render(request, "batches/_status.html", values)
        if not job.is_active:
            response["HX-Refresh"] = "true"
        return response
    return render(request, "batches/detail.html", {**values, "answers": first_answers(job, ANSWERS_SHOWN)})


@login_required
def batch_answers(request: HttpRequest, pk: str) -> FileResponse:
    job = get_object_or_404(batches(), pk=pk)
    if not job.answers:
        raise Http404
    return FileResponse(artifacts.open_file(job.answers), as_attachment=True, filename=f"answers-{job.pk}.jsonl", content_type="application/x-ndjson")
