"""The page on which another server's model is connected, and what is known of those that are."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from apps.accounts.problems import Problem
from apps.portal.pages import refuse
from apps.registry import upstreams as services
from apps.registry.forms import UpstreamForm
from apps.registry.models import ModelVersion
from apps.registry.upstream_access import health_of
from apps.rest import source_of

UPSTREAMS_SHOWN = 50


@login_required
def upstreams(request: HttpRequest) -> HttpResponse:
    """The form, and those that are connected. `?fragment=rows` is the latter."""
    if not request.user.may_operate:
        raise PermissionDenied
    form = UpstreamForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            version = services.connect(**form.cleaned_data, actor=request.user, source=source_of(request))
            return redirect("version", version.pk)
        except Problem as problem:
            refuse(form, problem)
    rows = list(ModelVersion.objects.filter(kind=ModelVersion.Kind.UPSTREAM)[:UPSTREAMS_SHOWN])
    known = health_of(rows)
    values = {"section": "models", "form": form, "rows": [(row, known.get(row.pk)) for row in rows], "hosts": settings.UPSTREAM_HOSTS}
    name = "registry/_upstreams.html" if request.GET.get("fragment") == "rows" else "registry/upstreams.html"
    return render(request, name, values, status=400 if form.errors else 200)


@login_required
def state(request: HttpRequest, pk: str) -> HttpResponse:
    """The part of a version's page that tells whether its server answers."""
    version = get_object_or_404(ModelVersion, pk=pk)
    if version.kind != ModelVersion.Kind.UPSTREAM:
        raise Http404
    return render(request, "registry/_upstream.html", {"version": version, "health": health_of([version]).get(version.pk)})
