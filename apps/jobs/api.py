import time
from collections.abc import Iterator

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter

from apps.database import release
from apps.jobs import services
from apps.jobs.models import Job, JobEvent
from apps.rest import AlwaysJSON, Resource, read_query, source_of
from apps.serving.streams import HEARTBEAT, event, event_stream

PATHS = {
    Job.Kind.PROCESSING: "processing-runs",
    Job.Kind.TRAINING: "training-jobs",
    Job.Kind.EVALUATION: "evaluations",
    Job.Kind.COMPRESSION: "compressions",
    Job.Kind.IMPORT: "imports",
    Job.Kind.BATCH: "batch-jobs",
}
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 10.0
MAX_STREAM_SECONDS = 600.0  # then the client comes back with the last event's id: no thread is held for ever
EVENTS_A_PAGE = 1000


class JobOutput(serializers.Serializer):
    id = serializers.CharField()
    url = serializers.SerializerMethodField(help_text="where this row can be read again")
    kind = serializers.ChoiceField(Job.Kind.choices)
    title = serializers.CharField()
    status = serializers.ChoiceField(Job.Status.choices)
    progress = serializers.FloatField(help_text="0 to 1")
    eta_seconds = serializers.FloatField(allow_null=True)
    message = serializers.CharField(help_text="what it is doing now")
    error = serializers.SerializerMethodField(help_text="why it failed, and what to do")
    attempt = serializers.IntegerField(help_text="how often a worker has claimed it")
    options = serializers.JSONField()
    result = serializers.JSONField()
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    duration_seconds = serializers.FloatField(allow_null=True)

    def get_url(self, job) -> str:
        path = f"/api/v1/{PATHS[job.kind]}/{job.pk}/"
        request = self.context.get("request")
        return request.build_absolute_uri(path) if request else path

    def get_error(self, job) -> str | None:
        return job.error or None


class EventOutput(serializers.Serializer):
    id = serializers.IntegerField()
    kind = serializers.CharField()
    data = serializers.JSONField()
    created_at = serializers.DateTimeField()


class EventsOutput(serializers.Serializer):
    results = EventOutput(many=True)
    last = serializers.IntegerField(help_text="give it as `after` next time")
    status = serializers.ChoiceField(Job.Status.choices)
    progress = serializers.FloatField()


class EventsQuery(serializers.Serializer):
    after = serializers.IntegerField(default=0, min_value=0, max_value=2**62, help_text="only events with a larger id")
    kind = serializers.CharField(default="", allow_blank=True, max_length=20, help_text="step, sample, stage, note, status, requeued")
    limit = serializers.IntegerField(default=EVENTS_A_PAGE, min_value=1, max_value=EVENTS_A_PAGE)


class JobActions(ListModelMixin, RetrieveModelMixin, Resource):
    """What was asked for, how far it is, and what came of it or why it failed."""

    filterset_fields = ["status"]

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def cancel(self, request, pk=None):
        """A queued job ends at once; a running one within seconds."""
        job = services.cancel(job=self.get_object(), actor=request.user, source=source_of(request))
        return Response(self.get_serializer(job).data)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def resume(self, request, pk=None):
        """Queue a failed or cancelled job again; it goes on from its last checkpoint.

        409 while another does the same: `job` is its id.
        """
        job = services.resume(job=self.get_object(), actor=request.user, source=source_of(request))
        return Response(self.get_serializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        parameters=[
            EventsQuery,
            OpenApiParameter("Last-Event-ID", OpenApiTypes.INT, OpenApiParameter.HEADER, description="of a stream that is taken up again"),
        ],
        responses={(200, "application/json"): EventsOutput, (200, "text/event-stream"): OpenApiTypes.STR},
    )
    @action(detail=True, pagination_class=None, filterset_fields=[], content_negotiation_class=AlwaysJSON)
    def events(self, request, pk=None):
        """What the job reported: a list, or a stream until the job ends where `Accept: text/event-stream` is asked for."""
        job, query = self.get_object(), read_query(EventsQuery, request)
        rows = JobEvent.objects.filter(job_id=job.pk)
        if query["kind"]:
            rows = rows.filter(kind=query["kind"])
        if "text/event-stream" in request.headers.get("Accept", ""):
            last = request.headers.get("Last-Event-ID", "")
            return event_stream(_stream(job.pk, rows, int(last) if last.isdecimal() and len(last) < 19 else query["after"]))
        found = list(rows.filter(pk__gt=query["after"])[: query["limit"]])
        last = found[-1].pk if found else query["after"]
        return Response(EventsOutput({"results": found, "last": last, "status": job.status, "progress": job.progress}).data)


def _stream(pk: str, rows: QuerySet[JobEvent], after: int) -> Iterator[bytes]:
    """Events with a number as they are written; `progress` whenever it moved; `end` when the job ended."""
    began = last_sign = time.monotonic()
    told = None
    while time.monotonic() - began < MAX_STREAM_SECONDS:
        # The state first: what is written before the job ends is then read after it.
        state = Job.objects.filter(pk=pk).values("status", "progress", "eta_seconds", "message", "error").first()
        for row in rows.filter(pk__gt=after)[:EVENTS_A_PAGE]:
            after, last_sign = row.pk, time.monotonic()
            yield event(row.data, id=row.pk, name=row.kind)
        if state != told:
            told, last_sign = state, time.monotonic()
            yield event(state or {}, name="progress")
        if state is None or state["status"] not in (Job.Status.QUEUED, Job.Status.RUNNING):
            yield event({"status": state["status"] if state else "gone"}, name="end")
            return
        if time.monotonic() - last_sign > HEARTBEAT_SECONDS:
            last_sign = time.monotonic()
            yield HEARTBEAT
        release()
        time.sleep(POLL_SECONDS)


class JobViewSet(JobActions):
    """Jobs of every kind. `url` leads to the row of the job's own kind, which holds more."""

    queryset = Job.objects.select_related("created_by")
    serializer_class = JobOutput
    filterset_fields = ["status", "kind"]


router = SimpleRouter()
router.register("jobs", JobViewSet)
urlpatterns = router.urls
