from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter

from apps.experiments import selectors, services
from apps.experiments.models import Experiment
from apps.registry.models import ModelVersion
from apps.rest import IdentField, Resource, checked, find, source_of


class ExperimentOutput(serializers.Serializer):
    id = serializers.CharField()
    name = serializers.CharField()
    status = serializers.ChoiceField(Experiment.Status.choices)
    control = serializers.CharField(source="control_id")
    control_name = serializers.CharField(source="control.name")
    treatment = serializers.CharField(source="treatment_id")
    treatment_name = serializers.CharField(source="treatment.name")
    split = serializers.FloatField(help_text="the treatment's share of the conversations")
    metrics = serializers.ListField(child=serializers.CharField())
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    stopped_at = serializers.DateTimeField(allow_null=True)


class ExperimentInput(serializers.Serializer):
    control = IdentField()
    treatment = IdentField()
    split = serializers.FloatField(default=0.5)
    metrics = serializers.ListField(child=serializers.CharField(max_length=40), required=False, max_length=20)
    name = serializers.CharField(default="", allow_blank=True, max_length=120)


class ExperimentViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """A/B tests of two versions on live traffic."""

    queryset = selectors.experiments()
    serializer_class = ExperimentOutput
    filterset_fields = ["status", "control", "treatment"]

    @extend_schema(request=ExperimentInput, responses={201: ExperimentOutput})
    def create(self, request):
        """A draft: nothing changes for anybody until it is started."""
        given = checked(ExperimentInput, request)
        for arm in selectors.ARMS:
            given[arm] = find(ModelVersion.objects.all(), given[arm], arm)
        experiment = services.create(**given, actor=request.user, source=source_of(request))
        return Response(ExperimentOutput(experiment).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def start(self, request, pk=None):
        """Split the conversations from now on; 409 while another experiment runs."""
        return Response(ExperimentOutput(services.start(experiment=self.get_object(), actor=request.user, source=source_of(request))).data)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def stop(self, request, pk=None):
        """The live version answers everybody again; its figures stay."""
        return Response(ExperimentOutput(services.stop(experiment=self.get_object(), actor=request.user, source=source_of(request))).data)

    @extend_schema(responses=OpenApiTypes.OBJECT, filters=False)
    @action(detail=True, pagination_class=None, filterset_fields=[])
    def results(self, request, pk=None):
        """Each arm's counts, ratings with their interval, accuracy, recall and latency; the difference; a verdict in words."""
        return Response(selectors.results(self.get_object()))


router = SimpleRouter()
router.register("experiments", ExperimentViewSet)
urlpatterns = router.urls
