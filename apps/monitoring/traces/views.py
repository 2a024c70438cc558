from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.monitoring.traces import store
from apps.monitoring.traces.waterfall import WIDTH, facts, waterfall, workers_of
from apps.registry.models import ModelVersion
from apps.serving.answer_log import answers


def may_see(user: User, trace: store.Trace) -> bool:
    return user.may_operate or (bool(trace.owner) and trace.owner == str(user.pk))


def answers_seen_by(user: User):
    rows = answers().select_related("model_version", "user")
    return rows if user.may_operate else rows.filter(user=user)


@login_required
def request_phases(request: HttpRequest, name: str) -> HttpResponse:
    """`name`: the id of a request, as its answer's X-Request-Id says, or of an answer. Redis forgets: then the row alone is shown."""
    trace = store.find(name)
    if trace is not None and not may_see(request.user, trace):
        trace = None
    known = facts(trace) if trace else {}
    answers = list(answers_seen_by(request.user).filter(pk__in=known["answers"] if trace else [name]).order_by("pk"))
    if trace is None and not answers:
        raise Http404(_("No request %(name)s is kept.") % {"name": repr(name)})
    values = {"section": "monitoring", "name": name, "answers": answers, "width": WIDTH, "about": known}
    if trace:
        version = answers[0].model_version if answers else ModelVersion.objects.filter(name=known["version"]).first()
        values |= {"fall": waterfall(trace), "version": version, "workers": workers_of(trace)}
    return render(request, "monitoring/request.html", values, status=200 if trace else 404)
