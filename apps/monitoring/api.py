from dataclasses import asdict

from django.urls import include, path, re_path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView

from apps.monitoring import alerting, selectors
from apps.monitoring.advisor import hardware, shapes, tuning
from apps.monitoring.advisor.answer import MAX_GPUS
from apps.monitoring.models import Alert, Silence
from apps.registry.selectors import live_version
from apps.rest import IdentField, Resource, checked, read_query, source_of
from apps.serving.routing import find_version
from workers.planning import RECIPES

MAX_WINDOW_SECONDS = selectors.MAX_WINDOW_SECONDS


class TimeseriesQuery(serializers.Serializer):
    window = serializers.IntegerField(default=3600, min_value=1, max_value=MAX_WINDOW_SECONDS, help_text="seconds, until now")
    step = serializers.IntegerField(
        default=10, min_value=1, max_value=MAX_WINDOW_SECONDS, help_text="seconds; larger where there would be too many points"
    )
    version = IdentField(default="", allow_blank=True, help_text="id or name; all together where none is given")


class PointOutput(serializers.Serializer):
    time = serializers.DateTimeField()
    qps = serializers.FloatField()
    requests = serializers.IntegerField()
    p50_ms = serializers.FloatField(allow_null=True)
    p95_ms = serializers.FloatField(allow_null=True)
    p99_ms = serializers.FloatField(allow_null=True)
    first_token_p50_ms = serializers.FloatField(allow_null=True)
    first_token_p99_ms = serializers.FloatField(allow_null=True)
    phase_turn_ms = serializers.FloatField(
        allow_null=True, help_text="until it had its turn in the web process; of a request, on average, as the other phases are"
    )
    phase_database_ms = serializers.FloatField(allow_null=True)
    phase_cache_ms = serializers.FloatField(allow_null=True)
    phase_queue_ms = serializers.FloatField(allow_null=True, help_text="until a worker took it, and until its engine had a slot")
    phase_load_ms = serializers.FloatField(allow_null=True)
    phase_prefill_ms = serializers.FloatField(allow_null=True)
    phase_decode_ms = serializers.FloatField(allow_null=True)
    phase_shared_ms = serializers.FloatField(allow_null=True, help_text="reading the answer somebody else asked for")
    phase_deliver_ms = serializers.FloatField(allow_null=True)
    error_rate = serializers.FloatField(allow_null=True)
    refused = serializers.IntegerField(help_text="told to come back later (429), as there was too much to do; not among the requests")
    refused_rate = serializers.FloatField(allow_null=True, help_text="those, of them and the requests together")
    cache_hit_rate = serializers.FloatField(allow_null=True)
    tokens_per_second = serializers.FloatField(help_text="that engines wrote")
    batch_size = serializers.FloatField(allow_null=True, help_text="answers that a step of an engine went on with, on average")
    queue_depth = serializers.FloatField()
    replicas = serializers.FloatField()
    memory_bytes = serializers.FloatField(allow_null=True, help_text="of web, jobs and inference processes together")


class TimeseriesOutput(serializers.Serializer):
    window = serializers.IntegerField()
    step = serializers.IntegerField(help_text="as asked for")
    version = serializers.CharField(allow_null=True)
    points = PointOutput(many=True)


class TimeseriesView(APIView):
    @extend_schema(parameters=[TimeseriesQuery], responses=TimeseriesOutput, operation_id="metrics_timeseries")
    def get(self, request):
        """How many requests there were, how long they and their phases took, how many failed or were known: step by step until now."""
        query = read_query(TimeseriesQuery, request)
        version = find_version(query["version"]).pk if query["version"] else None
        step = min(query["step"], query["window"])
        points = selectors.timeseries(window=query["window"], step=step, version=version)
        return Response({"window": query["window"], "step": step, "version": version, "points": points})


# -- alerts


class AlertOutput(serializers.Serializer):
    id = serializers.CharField()
    rule = serializers.CharField()
    status = serializers.CharField(source="state", help_text="the same as `state`")
    state = serializers.ChoiceField(Alert.State.choices)
    value = serializers.FloatField(help_text="the worst seen")
    threshold = serializers.FloatField()
    message = serializers.CharField()
    started_at = serializers.DateTimeField()
    fired_at = serializers.DateTimeField(allow_null=True)
    resolved_at = serializers.DateTimeField(allow_null=True)
    acknowledged_at = serializers.DateTimeField(allow_null=True)
    acknowledged_by = serializers.CharField(source="acknowledged_by.username", default=None, allow_null=True)


class AlertViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """What somebody should look at, and what is over, each with the worst that was seen."""

    queryset = selectors.alerts()
    serializer_class = AlertOutput
    filterset_fields = ["state", "rule"]

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def acknowledge(self, request, pk=None):
        """Say that you look after it."""
        alert = alerting.acknowledge(alert=self.get_object(), actor=request.user, source=source_of(request))
        return Response(AlertOutput(alert).data)


class SilenceInput(serializers.Serializer):
    rule = serializers.CharField(default="", allow_blank=True, max_length=40, help_text="all of them where none is given")
    minutes = serializers.IntegerField(min_value=1, max_value=alerting.MOST_SILENT_MINUTES)
    reason = serializers.CharField(default="", allow_blank=True, max_length=200)


class SilenceOutput(serializers.ModelSerializer):
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)

    class Meta:
        model = Silence
        fields = ["id", "rule", "reason", "until", "created_at", "created_by"]


class SilenceViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Rules of which nobody is told for a while."""

    queryset = Silence.objects.none()
    serializer_class = SilenceOutput

    def get_queryset(self):
        return alerting.silences()

    @extend_schema(request=SilenceInput, responses={201: SilenceOutput})
    def create(self, request):
        """Tell nobody of a rule, or of any, for so many minutes; alerts are shown all the same."""
        row = alerting.silence(**checked(SilenceInput, request), actor=request.user, source=source_of(request))
        return Response(SilenceOutput(row).data, status=201)

    def destroy(self, request, pk=None):
        """End it before its time."""
        alerting.end_silence(row=self.get_object(), actor=request.user, source=source_of(request))
        return Response(status=204)


# -- advisors


class HardwareQuery(serializers.Serializer):
    parameters = serializers.FloatField(required=False, help_text="of the model; or name a version or a preset")
    active_parameters = serializers.FloatField(required=False, min_value=1, help_text="of those, how many one token uses")
    version = IdentField(default="", allow_blank=True, help_text="id or name")
    preset = serializers.CharField(default="", allow_blank=True, max_length=40)
    purpose = serializers.ChoiceField(hardware.PURPOSES, default="train")
    gpus = serializers.IntegerField(default=1, min_value=1, max_value=MAX_GPUS)
    zero_stage = serializers.IntegerField(default=0, min_value=0, max_value=3)
    precision = serializers.ChoiceField(hardware.PRECISION_CHOICES, required=False, help_text="bf16 to train, int8 to serve where none is given")
    recipe = serializers.ChoiceField(list(RECIPES), default="paper", help_text="how half precision is kept: as in the ZeRO paper, or by this portal")
    batch = serializers.IntegerField(default=8, min_value=1, max_value=1_000_000, help_text="sequences in one rank's forward pass")
    sequence = serializers.IntegerField(
        required=False, min_value=1, max_value=10_000_000, help_text="tokens of one; the model's longest where none is given"
    )
    tokens = serializers.FloatField(required=False, min_value=1, max_value=1e18, help_text="that the training reads")
    days = serializers.FloatField(required=False, min_value=1e-3, max_value=1e5, help_text="in which it is done: the smallest fleet for it")
    checkpointing = serializers.BooleanField(default=False, help_text="activations of a layer are computed again in the backward pass")
    qps = serializers.FloatField(default=10.0, min_value=1e-6, max_value=1e9)
    p99_ms = serializers.FloatField(default=500.0, min_value=1e-3, max_value=1e9)
    answer_tokens = serializers.IntegerField(default=64, min_value=1, max_value=1_000_000)


class HardwareView(APIView):
    @extend_schema(parameters=[HardwareQuery], responses=OpenApiTypes.OBJECT, operation_id="advisor_hardware")
    def get(self, request):
        """Memory part by part with its formula, and which devices hold it, how many, how fast, at what cost."""
        query = read_query(HardwareQuery, request)
        total, active = query.pop("parameters", None), query.pop("active_parameters", None)
        version, preset = query.pop("version"), query.pop("preset")
        if version:
            shape = shapes.shape_of_version(find_version(version))
        elif total is not None:
            shape = shapes.shape_of_parameters(total, active)
        else:
            shape = shapes.shape_of_preset(preset or "nano")
        return Response(asdict(hardware.advise(shape=shape, **query)))


class TuningQuery(serializers.Serializer):
    version = IdentField(default="", allow_blank=True, help_text="id or name; the live one where none is given")


class RecommendationOutput(serializers.Serializer):
    order = serializers.IntegerField()
    area = serializers.CharField()
    severity = serializers.CharField(help_text="act, consider or fine")
    finding = serializers.CharField()
    figure = serializers.FloatField(allow_null=True)
    unit = serializers.CharField()
    threshold = serializers.FloatField(allow_null=True)
    advice = serializers.CharField()
    why = serializers.CharField(help_text="the formula")
    action = serializers.CharField(allow_null=True)


class TuningOutput(serializers.Serializer):
    version = serializers.CharField(allow_null=True, help_text="null where none is live and none was named")
    version_name = serializers.CharField(allow_null=True)
    recommendations = RecommendationOutput(many=True)


class TuningView(APIView):
    @extend_schema(parameters=[TuningQuery], responses=TuningOutput, operation_id="advisor_tuning")
    def get(self, request):
        """What was measured on a version, and what to change next, most urgent first."""
        asked = read_query(TuningQuery, request)["version"]
        version = find_version(asked) if asked else live_version()
        if version is None:
            return Response({"version": None, "version_name": None, "recommendations": []})
        return Response({"version": version.pk, "version_name": version.name, "recommendations": [asdict(r) for r in tuning.advise(version)]})


router = SimpleRouter()
router.register("alerts", AlertViewSet)
router.register("silences", SilenceViewSet, basename="silence")
urlpatterns = [
    re_path(r"^metrics/timeseries/?$", TimeseriesView.as_view()),
    path("advisor/hardware/", HardwareView.as_view()),
    path("advisor/tuning/", TuningView.as_view()),
    path("", include("apps.monitoring.traces.api")),
    *router.urls,
]
