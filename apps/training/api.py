from django.http import HttpResponse
from django.urls import path
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView

from apps.accounts.permissions import Operates
from apps.datasets.api import find_dataset
from apps.jobs.api import JobActions, JobOutput
from apps.registry.models import ModelVersion
from apps.rest import AlwaysJSON, IdentField, checked, find, read_query, source_of
from apps.training import selectors, services
from apps.training.manifests import manifest
from apps.training.models import TrainingJob
from apps.training.recipe import RecipeInput
from workers.training.manifests import DEFAULT_CLAIM, DEFAULT_IMAGE, SCHEDULERS


class MetricsOutput(serializers.Serializer):
    """The last step's figures."""

    step = serializers.IntegerField(required=False)
    loss = serializers.FloatField(required=False)
    lr = serializers.FloatField(required=False)
    tokens_per_second = serializers.FloatField(required=False)
    grad_norm = serializers.FloatField(required=False)
    loss_scale = serializers.FloatField(required=False)
    skipped_steps = serializers.IntegerField(required=False)
    expert_load_max_over_mean = serializers.FloatField(required=False)
    expert_load_min_over_mean = serializers.FloatField(required=False)
    elapsed = serializers.FloatField(required=False)


class TrainingJobOutput(JobOutput):
    dataset = serializers.CharField(source="dataset_id")
    dataset_name = serializers.CharField(source="dataset.name")
    run = serializers.CharField(source="run_id", help_text="the processing run whose rows it reads")
    parent = serializers.CharField(source="parent_id", allow_null=True)
    preset = serializers.CharField()
    steps = serializers.IntegerField(allow_null=True)
    minutes = serializers.FloatField(allow_null=True)
    precision = serializers.ChoiceField(TrainingJob.Precision.choices)
    accum_steps = serializers.IntegerField()
    zero_stage = serializers.IntegerField()
    world_size = serializers.IntegerField()
    expert_parallel_size = serializers.IntegerField(help_text="ranks over which each layer's experts are spread")
    router = serializers.ChoiceField(TrainingJob.Router.choices)
    method = serializers.ChoiceField(TrainingJob.Method.choices)
    lora = serializers.JSONField(help_text="rank, alpha and targets; empty where the method is full")
    objective = serializers.ChoiceField(TrainingJob.Objective.choices)
    stages = serializers.JSONField()
    seed = serializers.IntegerField()
    domain_routing = serializers.FloatField()
    recipe = serializers.JSONField(help_text="what differs from the defaults")
    spec_sha256 = serializers.CharField()
    metrics = MetricsOutput()
    model_version = serializers.CharField(source="model_version.pk", default=None, allow_null=True)


class LoraInput(serializers.Serializer):
    rank = serializers.IntegerField(default=8, min_value=1, max_value=1024)
    alpha = serializers.FloatField(default=16.0, help_text="what is learnt is multiplied by alpha / rank")
    targets = serializers.MultipleChoiceField(choices=["attention", "experts"], default=["attention", "experts"], allow_empty=False)

    def validate_targets(self, value):
        return sorted(value)

    def validate_alpha(self, value):
        if not value > 0:
            raise serializers.ValidationError(_("alpha must be more than 0."))
        return value


class StageInput(serializers.Serializer):
    kind = serializers.ChoiceField(["text", "questions", "adversarial", "preference"])
    share = serializers.FloatField(default=1.0, min_value=0.001, max_value=1000, help_text="of the run, next to the other stages'")
    rehearsal = serializers.FloatField(default=0.0, min_value=0.0, max_value=0.99, help_text="share of examples of the kinds of the stages before")


class TrainingInput(serializers.Serializer):
    dataset = IdentField()
    preset = serializers.CharField(default="nano", max_length=40)
    steps = serializers.IntegerField(default=None, allow_null=True, min_value=1, max_value=10_000_000)
    minutes = serializers.FloatField(default=None, allow_null=True)
    precision = serializers.ChoiceField(TrainingJob.Precision.choices, default=TrainingJob.Precision.BF16)
    accum_steps = serializers.IntegerField(default=1, min_value=1, max_value=4096)
    micro_batch = serializers.IntegerField(
        default=None, allow_null=True, min_value=1, max_value=4096, help_text="examples in one forward pass of a rank; 32 where none is given"
    )
    zero_stage = serializers.IntegerField(default=0, min_value=0, max_value=3)
    activation_checkpointing = serializers.BooleanField(default=False, help_text="compute activations again in place of keeping them")
    world_size = serializers.IntegerField(default=1, min_value=1, max_value=32_767)
    expert_parallel_size = serializers.IntegerField(
        default=1, min_value=1, max_value=32_767,
        help_text="ranks over which each layer's experts are spread; divides world_size and the experts, and goes with zero_stage 0 and 1",
    )  # fmt: skip
    router = serializers.ChoiceField(TrainingJob.Router.choices, default=TrainingJob.Router.SOFTMAX)
    parent = IdentField(default=None, allow_null=True, help_text="the model version to go on from")
    method = serializers.ChoiceField(TrainingJob.Method.choices, default=TrainingJob.Method.FULL, help_text="lora needs a parent")
    lora = LoraInput(required=False)
    objective = serializers.ChoiceField(
        TrainingJob.Objective.choices, default=TrainingJob.Objective.SFT, help_text="dpo and kto need a parent, and a dataset with ratings"
    )
    stages = StageInput(many=True, required=False, max_length=16, help_text="one after the other; none: the dataset's mixture throughout")
    seed = serializers.IntegerField(default=0, min_value=0, max_value=2**31 - 1)
    domain_routing = serializers.FloatField(
        default=0.0, min_value=0.0, max_value=1.0, help_text="how hard the experts are drawn apart by domain; 0: they know of none"
    )
    recipe = RecipeInput(required=False, help_text="optimizer, rates, schedule, averaging and what else most runs leave alone")


class FleetQuery(serializers.Serializer):
    nodes = serializers.IntegerField(default=1, min_value=1, max_value=10_000)
    ranks_per_node = serializers.IntegerField(default=1, min_value=1, max_value=1024)
    device = serializers.ChoiceField(["cpu", "cuda"], default="cpu", help_text="cuda asks for a GPU for each rank")
    image = serializers.RegexField(r"^[\w./:@-]+$", default=DEFAULT_IMAGE, max_length=300)
    claim = serializers.RegexField(
        r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", default=DEFAULT_CLAIM, max_length=253, help_text="the PersistentVolumeClaim that holds the job's folders"
    )
    cpus = serializers.IntegerField(default=0, min_value=0, max_value=4096, help_text="of a node; 0: as many as the job has threads")
    memory_gib = serializers.IntegerField(default=16, min_value=1, max_value=100_000, help_text="of a node")
    hours = serializers.IntegerField(default=24, min_value=1, max_value=24 * 365)


class TrainingJobViewSet(JobActions):
    queryset = selectors.training_jobs()
    serializer_class = TrainingJobOutput
    filterset_fields = ["status", "dataset", "preset", "parent"]

    @extend_schema(request=TrainingInput, responses={202: TrainingJobOutput})
    def create(self, request):
        """Give `steps` or `minutes`; two minutes where neither is given.

        A run that is under way with the same spec, seed included, is not queued again: the answer is then that job. A run that would not fit this machine's memory is refused with `memory` (bytes by part, with formulas) and `nearest`, the
        fields to change for the nearest configuration that fits.
        """
        given = checked(TrainingInput, request)
        given["dataset"] = find_dataset(given["dataset"])
        given["parent"] = find(ModelVersion.objects.all(), given["parent"], "parent")
        job = services.start(**given, actor=request.user, source=source_of(request))
        return Response(self.get_serializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        parameters=[FleetQuery, OpenApiParameter("scheduler", OpenApiTypes.STR, OpenApiParameter.PATH, enum=list(SCHEDULERS))],
        responses={(200, "text/plain"): OpenApiTypes.STR},
    )
    @action(
        detail=True, url_path="manifests/(?P<scheduler>[0-9A-Za-z]+)", permission_classes=[Operates], pagination_class=None, filterset_fields=[],
        content_negotiation_class=AlwaysJSON,
    )  # fmt: skip
    def manifest(self, request, pk=None, scheduler=""):
        """The job for an existing scheduler: a JobSet, a TrainJob of Kubeflow Trainer 2, or an sbatch script. A step has as many examples as here."""
        text, name = manifest(self.get_object(), scheduler, **read_query(FleetQuery, request))
        return HttpResponse(text, content_type="text/plain; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'})


class DenseTwinOutput(serializers.Serializer):
    total_parameters = serializers.IntegerField()
    configuration = serializers.JSONField()


class PresetOutput(serializers.Serializer):
    name = serializers.CharField()
    total_parameters = serializers.IntegerField(help_text="counted on torch's meta device")
    active_parameters = serializers.IntegerField(help_text="of those, how many one token uses")
    configuration = serializers.JSONField()
    dense_twin = DenseTwinOutput(allow_null=True, required=False, help_text="a dense model with as many parameters")


class PresetsOutput(serializers.Serializer):
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    results = PresetOutput(many=True)


class PresetsView(APIView):
    @extend_schema(responses=PresetsOutput, operation_id="presets_list")
    def get(self, request):
        """Shapes of models that can be trained, with their parameters and the dense model as large."""
        return Response({"next": None, "previous": None, "results": selectors.presets()})


router = SimpleRouter()
router.register("training-jobs", TrainingJobViewSet)
urlpatterns = [path("presets/", PresetsView.as_view()), *router.urls]
