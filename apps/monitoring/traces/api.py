from datetime import UTC, datetime

from django.urls import path
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.permissions import SignedIn
from apps.accounts.problems import Missing
from apps.monitoring.traces import store
from apps.monitoring.traces.views import may_see
from apps.monitoring.traces.waterfall import facts
from apps.rest import read_query

PAGE = 50


class TracesQuery(serializers.Serializer):
    cursor = serializers.IntegerField(required=False, min_value=1, max_value=2**53, help_text="from `next` of the page before")
    page_size = serializers.IntegerField(default=PAGE, min_value=1, max_value=500)
    path = serializers.CharField(default="", allow_blank=True, max_length=100, help_text="such as /v1/chat/completions")
    version = serializers.CharField(default="", allow_blank=True, max_length=200, help_text="its name")
    tenant = serializers.ChoiceField(["token", "user", "guest"], required=False)
    failed = serializers.BooleanField(required=False, allow_null=True, default=None)
    slower_than_ms = serializers.FloatField(default=0.0, min_value=0)


class PhaseOutput(serializers.Serializer):
    phase = serializers.CharField(source="name", help_text="database, cache, queue, load, prefill, decode, deliver or shared")
    started_ms = serializers.FloatField(help_text="after the request began")
    took_ms = serializers.FloatField()
    about = serializers.DictField(help_text="tokens, worker and the like")


class TraceOutput(serializers.Serializer):
    trace = serializers.CharField(help_text="OpenTelemetry's id")
    request_id = serializers.CharField(help_text="as the response's X-Request-Id")
    answers = serializers.ListField(child=serializers.CharField(), help_text="ids of the answers that it made")
    method = serializers.CharField()
    path = serializers.CharField()
    status = serializers.IntegerField(allow_null=True)
    failed = serializers.BooleanField()
    failure = serializers.CharField(allow_blank=True)
    user = serializers.CharField(allow_blank=True)
    tenant = serializers.CharField(help_text="token, user or guest")
    version = serializers.CharField(allow_blank=True)
    started_at = serializers.DateTimeField()
    took_ms = serializers.FloatField()
    phases = PhaseOutput(many=True)


class TracesOutput(serializers.Serializer):
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    results = TraceOutput(many=True)


def _told(trace: store.Trace) -> dict:
    start = trace.root.start if trace.root else min(step.start for step in trace.steps)
    phases = [
        {"name": step.name, "started_ms": (step.start - start) / 1e6, "took_ms": step.milliseconds, "about": step.about} for step in trace.steps
    ]  # fmt: skip
    took = trace.root.milliseconds if trace.root else 0.0
    return {"trace": trace.id, **facts(trace), "started_at": datetime.fromtimestamp(start / 1e9, UTC), "took_ms": took, "phases": phases}


class TraceListView(APIView):
    """Requests with their phases, as long as they are kept: one's own, for operators all; the newest first."""

    permission_classes = [SignedIn]

    @extend_schema(parameters=[TracesQuery], responses=TracesOutput, operation_id="traces_list", tags=["traces"])
    def get(self, request):
        query = read_query(TracesQuery, request)
        owner = None if request.user.may_operate else str(request.user.pk)
        found: list[tuple[int, store.Trace]] = []
        for at, trace in store.newest(owner=owner, before=query.get("cursor")):
            if _fits(trace, query):
                found.append((at, trace))
            if len(found) > query["page_size"]:
                break
        page = found[: query["page_size"]]
        following = None
        if len(found) > len(page):
            values = request.query_params.copy()
            values["cursor"] = page[-1][0]
            following = request.build_absolute_uri(f"{request.path}?{values.urlencode()}")
        return Response(TracesOutput({"next": following, "previous": None, "results": [_told(trace) for _at, trace in page]}).data)


def _fits(trace: store.Trace, query: dict) -> bool:
    known = facts(trace)
    exact = all(known[name] == query[name] for name in ("path", "version", "tenant") if query.get(name))
    slow = trace.root is not None and trace.root.milliseconds >= query["slower_than_ms"]
    return exact and slow and query["failed"] in (None, known["failed"])


class TraceView(APIView):
    permission_classes = [SignedIn]

    @extend_schema(responses=TraceOutput, operation_id="traces_retrieve", tags=["traces"])
    def get(self, request, name: str):
        """One request, by its own id or by that of an answer that it made."""
        trace = store.find(name)
        if trace is None or not may_see(request.user, trace):
            raise Missing(_("No request %(name)s is kept.") % {"name": repr(name)}, field="name")
        return Response(TraceOutput(_told(trace)).data)


urlpatterns = [path("traces/", TraceListView.as_view()), path("traces/<str:name>/", TraceView.as_view())]
