"""What people said of the answers, and the dataset it becomes."""

import json
from collections.abc import Iterator

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _

from apps.datasets import services as datasets
from apps.feedback import selectors, services
from apps.feedback.models import Feedback
from apps.portal.pages import action, back, page_of
from apps.registry.models import ModelVersion
from apps.rest import source_of

LOW = "low"  # rated 1 or 2 and not corrected yet
VERSIONS_OFFERED = 50
SHOWN = 25
FILTERS = ("rating", "version", "new")


@login_required
def feedback(request: HttpRequest) -> HttpResponse:
    counted = selectors.by_rating()
    largest = max(counted.values(), default=0) or 1
    values = {
        "section": "feedback",
        "summary": selectors.summary(),
        "histogram": [(rating, rows, rows / largest) for rating, rows in counted.items()],
        "page": page_of(_filtered(request), request, SHOWN),
        "versions": ModelVersion.objects.all()[:VERSIONS_OFFERED],
        "filtered": any(request.GET.get(name) for name in FILTERS),
    }
    return render(request, "feedback/list.html", values)


def _filtered(request: HttpRequest) -> QuerySet[Feedback]:
    rows = selectors.feedback()
    rating = request.GET.get("rating", "")
    if rating == LOW:
        rows = rows.filter(rating__lte=2, correction="", dataset=None)
    elif rating in ("1", "2", "3", "4", "5"):
        rows = rows.filter(rating=int(rating))
    if version := request.GET.get("version", ""):
        rows = rows.filter(answer__model_version=version)
    if request.GET.get("new"):
        rows = rows.filter(dataset=None)
    return rows


@action
def feedback_correct(request: HttpRequest, pk: str) -> HttpResponse:
    row = get_object_or_404(Feedback.objects.select_related("answer"), pk=pk)
    services.correct(row=row, correction=request.POST.get("correction", ""), actor=request.user, source=source_of(request))
    messages.success(request, _("The correction is kept; it becomes a training pair with the next dataset of ratings."))
    return back(request, "feedback")


@action
def feedback_dataset(request: HttpRequest) -> HttpResponse:
    source = source_of(request)
    dataset = services.make_dataset(name=request.POST.get("name", ""), actor=request.user, source=source)
    datasets.process(dataset=dataset, actor=request.user, source=source)
    messages.success(request, _("“%(name)s” is made and being processed; train on it next.") % {"name": dataset.name})
    return redirect("dataset", dataset.pk)


@login_required
def feedback_export(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        for row in _filtered(request).iterator(chunk_size=2000):
            yield json.dumps({
                "id": row.pk, "question": row.answer.prompt, "answer": row.answer.text, "rating": row.rating, "comment": row.comment,
                "correction": row.correction, "version": row.answer.model_version.name, "latency_ms": round(row.answer.latency_ms, 1),
                "time": row.created_at.isoformat(),
            }, ensure_ascii=False) + "\n"  # fmt: skip

    headers = {"Content-Disposition": 'attachment; filename="ratings.jsonl"'}
    return StreamingHttpResponse(lines(), content_type="application/jsonl", headers=headers)
