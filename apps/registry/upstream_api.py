from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter

from apps.registry import selectors, upstreams
from apps.registry.api import VersionOutput
from apps.registry.models import ModelVersion
from apps.registry.upstream_access import health_of
from apps.rest import Resource, checked, source_of


class UpstreamInput(serializers.Serializer):
    name = serializers.CharField(max_length=60, help_text="of the version")
    base_url = serializers.CharField(
        max_length=300, help_text="of the server's API, usually ending in /v1; its host must be in DSPORTAL_UPSTREAM_HOSTS"
    )
    model = serializers.CharField(max_length=300, help_text="as the server calls it")
    key = serializers.CharField(
        max_length=40, default="", allow_blank=True, help_text="the name of its key: `gpu` for the variable DSPORTAL_UPSTREAM_KEY_GPU; never the key"
    )
    check = serializers.BooleanField(default=True, help_text="refuse where it does not answer now, or has no such model")


class UpstreamPlace(serializers.Serializer):
    base_url = serializers.CharField()
    model = serializers.CharField()
    key = serializers.CharField(help_text="its name")


class UpstreamHealthOutput(serializers.Serializer):
    state = serializers.CharField(help_text="of the circuit: closed (it is asked), open (it is left alone), half-open (it is being tried)")
    checked_at = serializers.DateTimeField(allow_null=True)
    latency_ms = serializers.FloatField(allow_null=True)
    failures = serializers.IntegerField(help_text="in a row")
    error = serializers.CharField(help_text="the last one; empty since it last answered")


class UpstreamOutput(VersionOutput):
    upstream = serializers.SerializerMethodField(help_text="where it is served")
    health = serializers.SerializerMethodField(help_text="as the inference worker has it that looked last; null where none has asked")

    @extend_schema_field(UpstreamPlace)
    def get_upstream(self, version) -> dict:
        return version.details["upstream"]

    @extend_schema_field(UpstreamHealthOutput(allow_null=True))
    def get_health(self, version) -> dict | None:
        known = health_of([version]).get(version.pk)
        return UpstreamHealthOutput(known).data if known else None


class UpstreamViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Versions whose model another server holds; they are model versions like others."""

    queryset = selectors.versions().filter(kind=ModelVersion.Kind.UPSTREAM)
    serializer_class = UpstreamOutput
    filterset_fields = ["state", "name"]

    @extend_schema(request=UpstreamInput, responses={201: UpstreamOutput})
    def create(self, request):
        """Connect a model that another server holds; it is asked at once whether it has it."""
        given = checked(UpstreamInput, request)
        version = upstreams.connect(checked=given.pop("check"), **given, actor=request.user, source=source_of(request))
        shown = self.get_queryset().get(pk=version.pk)
        return Response(UpstreamOutput(shown, context=self.get_serializer_context()).data, status=status.HTTP_201_CREATED)


router = SimpleRouter()
router.register("upstreams", UpstreamViewSet, basename="upstream")
urlpatterns = router.urls
