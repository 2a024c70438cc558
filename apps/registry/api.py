from django.http import FileResponse, Http404
from django.shortcuts import get_object_or_404
from django.urls import path
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.parsers import MultiPartParser
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView

from apps import artifacts
from apps.accounts.parsers import BoundedJSONParser
from apps.jobs.api import JobActions, JobOutput
from apps.registry import drafts, exports, gates, imports, selectors, services
from apps.registry.models import CompressionJob, Evaluation, EvaluationSet, ImportJob, ModelVersion
from apps.rest import IdentField, Resource, checked, find, source_of
from apps.serving.models import Deployment
from workers.compression.applicable import unexportable

# -- model versions


class EvaluationFigures(serializers.Serializer):
    bleu = serializers.FloatField()
    bleu_low = serializers.FloatField(allow_null=True)
    bleu_high = serializers.FloatField(allow_null=True)
    baseline_bleu = serializers.FloatField(allow_null=True, help_text="of always giving the most frequent answer")
    refusal_rate = serializers.FloatField(allow_null=True, help_text="of falsehoods")
    false_alarm_rate = serializers.FloatField(allow_null=True, help_text="of true claims")
    questions = serializers.IntegerField()
    claims = serializers.IntegerField(required=False)
    exact_match = serializers.FloatField(allow_null=True, required=False)
    tokens_per_second = serializers.FloatField(allow_null=True, required=False)
    latency_ms = serializers.FloatField(allow_null=True, required=False)
    per_domain = serializers.JSONField(required=False)
    signature = serializers.CharField(required=False, help_text="of sacreBLEU")
    id = serializers.CharField(help_text="of the evaluation")
    evaluation_set = serializers.CharField()


_FIGURES = ("bleu", "bleu_low", "bleu_high", "baseline_bleu", "refusal_rate", "false_alarm_rate", "questions")
_MORE_FIGURES = ("claims", "exact_match", "tokens_per_second", "latency_ms", "per_domain", "signature")


def figures_of(evaluation: Evaluation) -> dict:
    metrics = evaluation.metrics
    known = {name: metrics.get(name) for name in _FIGURES} | {name: metrics[name] for name in _MORE_FIGURES if name in metrics}
    return {**known, "id": evaluation.pk, "evaluation_set": evaluation.evaluation_set_id}


class VersionOutput(serializers.Serializer):
    id = serializers.CharField()
    url = serializers.SerializerMethodField()
    number = serializers.IntegerField()
    name = serializers.CharField()
    kind = serializers.ChoiceField(ModelVersion.Kind.choices)
    state = serializers.ChoiceField(ModelVersion.State.choices)
    parent = serializers.CharField(source="parent_id", allow_null=True)
    draft = serializers.CharField(source="draft_id", allow_null=True, help_text="the version that guesses ahead for it")
    training_job = serializers.CharField(source="training_job_id", allow_null=True)
    compression_job = serializers.CharField(source="compression_job_id", allow_null=True)
    dataset = serializers.CharField(source="run.dataset_id", default=None, allow_null=True, help_text="it, or its ancestor, was trained on")
    total_parameters = serializers.IntegerField()
    active_parameters = serializers.IntegerField()
    artifact_bytes = serializers.IntegerField()
    evaluation = serializers.SerializerMethodField(help_text="on the newest held-out set; null before the first")
    colour = serializers.IntegerField()
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    created_at = serializers.DateTimeField()

    def get_url(self, version) -> str:
        request, address = self.context.get("request"), f"/api/v1/model-versions/{version.pk}/"
        return request.build_absolute_uri(address) if request else address

    @extend_schema_field(EvaluationFigures(allow_null=True))
    def get_evaluation(self, version) -> dict | None:
        newest = selectors.latest_evaluation(version)
        return figures_of(newest) if newest else None


class RelativeOutput(serializers.Serializer):
    id = serializers.CharField()
    name = serializers.CharField()
    kind = serializers.CharField()
    state = serializers.CharField()
    training_job = serializers.CharField(source="training_job_id", allow_null=True)
    dataset = serializers.CharField(source="run.dataset_id", default=None, allow_null=True)


class DraftingOutput(serializers.Serializer):
    acceptance = serializers.FloatField(allow_null=True, help_text="share of its guesses that were right; null before the first")
    tokens_per_step = serializers.FloatField(allow_null=True, help_text="of one answer; 1 without a draft")


class DraftInput(serializers.Serializer):
    draft = IdentField(allow_null=True, help_text="one of the possible drafts; null for none")


class VersionDetail(VersionOutput):
    w8a8_url = serializers.SerializerMethodField(help_text="its tar for servers of W8A8 checkpoints; null where there is none")
    lineage = RelativeOutput(source="line", many=True, help_text="from the oldest ancestor down to the version itself")
    children = RelativeOutput(source="offspring", many=True)
    possible_drafts = RelativeOutput(many=True, help_text="who may guess ahead for it, the smallest first")
    drafting = DraftingOutput(allow_null=True, help_text="what the draft was worth within the last day; null without a draft")
    config = serializers.JSONField()
    details = serializers.JSONField(help_text="what its job measured")

    def get_w8a8_url(self, version) -> str | None:
        return f"{self.get_url(version)}export/w8a8.tar" if unexportable(version.kind, version.details) is None else None


class ImportInput(serializers.Serializer):
    name = serializers.CharField(max_length=60)
    path = serializers.CharField(required=False, max_length=500, help_text="a folder below an import root, or a URL the settings allow")
    files = serializers.ListField(child=serializers.FileField(), required=False, help_text="in place of a path (multipart)")
    parent = IdentField(required=False, help_text="a version: what is imported is an adapter in PEFT's layout, to be added to it")


class EvaluateInput(serializers.Serializer):
    max_questions = serializers.IntegerField(required=False, min_value=1, max_value=100_000)
    max_tokens = serializers.IntegerField(required=False, min_value=1, max_value=1024)
    evaluation_set = IdentField(default=None, allow_null=True, help_text="the newest of the version's own data where none is given")


class RuleOutput(serializers.Serializer):
    name = serializers.CharField()
    passed = serializers.BooleanField()
    value = serializers.FloatField(allow_null=True)
    threshold = serializers.FloatField(allow_null=True)
    reason = serializers.CharField()


class GateOutput(serializers.Serializer):
    passed = serializers.BooleanField()
    rules = RuleOutput(many=True)
    baseline = serializers.CharField(source="baseline.pk", default=None, allow_null=True)
    baseline_name = serializers.CharField(source="baseline.name", default=None, allow_null=True)
    evaluation_set = serializers.CharField(source="evaluation_set.pk", default=None, allow_null=True)


class DeploymentOutput(serializers.Serializer):
    id = serializers.CharField()
    model_version = serializers.CharField(source="model_version_id")
    version_name = serializers.CharField(source="model_version.name")
    reason = serializers.ChoiceField(Deployment.Reason.choices)
    gate = serializers.CharField(source="gate_id", allow_null=True)
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    started_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)


class PromotionOutput(serializers.Serializer):
    deployment = DeploymentOutput()
    version = VersionOutput()


class VersionFileOutput(serializers.Serializer):
    name = serializers.CharField()
    bytes = serializers.IntegerField()
    sha256 = serializers.CharField()
    url = serializers.URLField()


class EvaluationOutput(JobOutput):
    model_version = serializers.CharField(source="model_version_id")
    evaluation_set = serializers.CharField(source="evaluation_set_id")
    metrics = serializers.JSONField()


class ImportOutput(JobOutput):
    name = serializers.CharField()
    source = serializers.CharField()
    model_version = serializers.CharField(source="model_version_id", allow_null=True)


class ModelVersionViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Models that were trained, compressed, imported or connected, with their newest evaluation; one by one with lineage and figures too."""

    queryset = selectors.versions()
    parser_classes = [BoundedJSONParser, MultiPartParser]
    filterset_fields = ["state", "kind", "parent", "name", "training_job", "compression_job"]

    def get_serializer_class(self):
        return VersionDetail if self.action == "retrieve" else VersionOutput

    def retrieve(self, request, *args, **kwargs):
        version = self.get_object()
        version.line = selectors.lineage(version)
        version.offspring = list(version.children.select_related("run").order_by("id"))
        version.possible_drafts, version.drafting = drafts.possible_drafts(version), drafts.drafting(version)
        return Response(self.get_serializer(version).data)

    @extend_schema(request={"application/json": ImportInput, "multipart/form-data": ImportInput}, responses={202: ImportOutput})
    def create(self, request):
        """Import a model in Hugging Face's layout, or an adapter in PEFT's."""
        given = checked(ImportInput, request)
        parent = find(ModelVersion.objects.all(), given.get("parent"), "parent")
        who = {"name": given["name"], "parent": parent, "actor": request.user, "source": source_of(request)}
        if given.get("files"):
            job = imports.import_uploads(uploads=given["files"], **who)
        else:
            job = imports.import_model(path=given.get("path", ""), **who)
        return Response(ImportOutput(job, context={"request": request}).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=EvaluateInput, responses={202: EvaluationOutput})
    @action(detail=True, methods=["post"])
    def evaluate(self, request, pk=None):
        """Queue an evaluation on held-out questions.

        The same of the same version that is under way is not queued again: the answer is then that job.
        """
        options = checked(EvaluateInput, request)
        chosen = find(EvaluationSet.objects.all(), options.pop("evaluation_set"), "evaluation_set")
        evaluation = services.evaluate(
            version=self.get_object(), actor=request.user, evaluation_set=chosen, options=options, source=source_of(request)
        )
        return Response(EvaluationOutput(evaluation, context={"request": request}).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses=GateOutput, filters=False)
    @action(detail=True, pagination_class=None, filterset_fields=[])
    def gates(self, request, pk=None):
        """What the gate says now: may this version go live?"""
        return Response(GateOutput(gates.verdict(self.get_object())).data)

    @extend_schema(request=None, responses={200: PromotionOutput, 409: OpenApiTypes.OBJECT})
    @action(detail=True, methods=["post"])
    def promote(self, request, pk=None):
        """Make it live; 409 with every reason while its gate does not pass."""
        return self._deployed(services.promote(version=self.get_object(), actor=request.user, source=source_of(request)))

    @extend_schema(request=None, responses={200: PromotionOutput, 409: OpenApiTypes.OBJECT})
    @action(detail=True, methods=["post"])
    def rollback(self, request, pk=None):
        """Take this, the live version, back to the one that served before it."""
        return self._deployed(services.rollback(version=self.get_object(), actor=request.user, source=source_of(request)))

    @extend_schema(request=DraftInput, responses=VersionOutput)
    @action(detail=True, methods=["post"])
    def draft(self, request, pk=None):
        """Choose or clear the smaller relative that guesses ahead for it while it answers. Its answers stay the same."""
        version = self.get_object()
        chosen = find(ModelVersion.objects.all(), checked(DraftInput, request)["draft"], "draft")
        drafts.choose_draft(version=version, draft=chosen, actor=request.user, source=source_of(request))
        return Response(self.get_serializer(version).data)

    def _deployed(self, deployment: Deployment) -> Response:
        version = selectors.versions().get(pk=deployment.model_version_id)
        return Response(PromotionOutput({"deployment": deployment, "version": version}, context=self.get_serializer_context()).data)

    @extend_schema(responses=VersionFileOutput(many=True), filters=False)
    @action(detail=True, pagination_class=None, filterset_fields=[])
    def files(self, request, pk=None):
        """What it consists of: names, sizes, SHA-256, and where each is downloaded."""
        version = self.get_object()
        base = request.build_absolute_uri(f"/api/v1/model-versions/{version.pk}/files/")
        return Response({"next": None, "previous": None, "results": [{**entry, "url": f"{base}{entry['name']}"} for entry in version.files]})


class VersionFileView(APIView):
    @extend_schema(
        operation_id="model_versions_file", responses={(200, "application/octet-stream"): OpenApiTypes.BINARY},
        parameters=[OpenApiParameter("name", OpenApiTypes.STR, OpenApiParameter.PATH), OpenApiParameter("pk", OpenApiTypes.STR, OpenApiParameter.PATH)],
    )  # fmt: skip
    def get(self, request, pk: str, name: str):
        """One of its files."""
        version = ModelVersion.objects.filter(pk=pk).first()
        entry = next((entry for entry in version.files if entry["name"] == name), None) if version else None
        if entry is None:
            raise Http404(_("There is no such file in this version."))
        try:
            file = artifacts.open_file(f"{version.folder}/{name}")
        except FileNotFoundError as error:
            raise Http404(_("%(name)s is missing from the artifacts; restore it from a backup.") % {"name": name}) from error
        response = FileResponse(
            file, as_attachment=True, filename=f"{version.name}-{name.replace('/', '-')}", content_type="application/octet-stream"
        )
        response["ETag"] = f'"{entry["sha256"]}"'
        return response


class W8A8View(APIView):
    @extend_schema(
        operation_id="model_versions_w8a8", responses={(200, "application/x-tar"): OpenApiTypes.BINARY, 409: OpenApiTypes.OBJECT},
        parameters=[OpenApiParameter("pk", OpenApiTypes.STR, OpenApiParameter.PATH)],
    )  # fmt: skip
    def get(self, request, pk: str):
        """An INT8 version as a W8A8 checkpoint of compressed-tensors, which vLLM and transformers load: a tar, with SHA256SUMS at its end."""
        return exports.w8a8(get_object_or_404(ModelVersion, pk=pk))


# -- evaluations, compressions, imports


class EvaluationViewSet(JobActions):
    queryset = Evaluation.objects.select_related("created_by")
    serializer_class = EvaluationOutput
    filterset_fields = ["status", "model_version", "evaluation_set"]


class EvaluationSetOutput(serializers.Serializer):
    id = serializers.CharField()
    dataset = serializers.CharField(source="run.dataset_id")
    run = serializers.CharField(source="run_id")
    sha256 = serializers.CharField()
    questions = serializers.IntegerField()
    claims = serializers.IntegerField()
    created_at = serializers.DateTimeField()


class EvaluationSetViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Held-out questions and claims that versions are evaluated on."""

    queryset = EvaluationSet.objects.select_related("run")
    serializer_class = EvaluationSetOutput
    filterset_fields = ["run"]


class CompressionOutput(JobOutput):
    model_version = serializers.CharField(source="model_version_id", help_text="the one that is compressed")
    method = serializers.ChoiceField(CompressionJob.Method.choices)
    trail = serializers.JSONField(help_text="the policy's decisions, each with its measured figures")
    versions = serializers.SerializerMethodField(help_text="ids of what came of it")

    def get_versions(self, job) -> list[str]:
        return [version.pk for version in job.versions.all()]


class CompressionInput(serializers.Serializer):
    model_version = IdentField()
    method = serializers.ChoiceField(CompressionJob.Method.choices)
    threshold = serializers.FloatField(required=False, min_value=0, max_value=1e6, help_text="prune: weights whose magnitude is smaller go")
    sparsity = serializers.FloatField(required=False, min_value=0, max_value=1, help_text="prune: share of the weights that goes")
    structure = serializers.CharField(required=False, max_length=20, help_text="prune: unstructured, layer, neuron, expert or 2:4")
    importance = serializers.CharField(required=False, max_length=20, help_text="prune: of neurons and experts, by magnitude or by use")
    student = serializers.CharField(required=False, max_length=40, help_text="distill, policy: a preset; else a shape derived from the teacher's")
    minutes = serializers.FloatField(required=False, help_text="distill, policy; prune: of recovery")
    steps = serializers.IntegerField(required=False, min_value=1, max_value=10_000_000, help_text="in place of minutes")
    temperature = serializers.FloatField(
        required=False, min_value=0, max_value=100, help_text="distill: the logits are divided by it; 1 where none is given, and above it softer"
    )
    weights = serializers.CharField(required=False, max_length=10, help_text="onnx: fp32 or int8")
    max_bleu_loss = serializers.FloatField(
        required=False, min_value=0, max_value=100, help_text="policy, and of prune the curve's advice: BLEU points that may be lost"
    )
    min_bleu_ratio = serializers.FloatField(
        required=False, min_value=0, max_value=1, help_text="policy: of the parent's BLEU, in place of max_bleu_loss"
    )
    max_questions = serializers.IntegerField(required=False, min_value=1, max_value=100_000, help_text="policy, prune: asked of each variant")
    max_bytes = serializers.IntegerField(required=False, min_value=1, max_value=2**60, help_text="policy: the artifact's size")
    max_p99_ms = serializers.FloatField(required=False, min_value=0, help_text="policy: of one answer on one core")
    min_speed_ratio = serializers.FloatField(
        required=False, min_value=0, help_text="policy: tokens per second of decoding next to the parent's, eight answers at a time"
    )
    target = serializers.CharField(required=False, max_length=10, help_text="policy: cpu or onnx")

    def validate(self, attrs):
        if strange := [name for name in self.initial_data if name not in self.fields]:
            raise serializers.ValidationError({name: [_("No method has such an option.")] for name in strange})
        return attrs


class CompressionViewSet(JobActions):
    queryset = CompressionJob.objects.select_related("created_by").prefetch_related("versions")
    serializer_class = CompressionOutput
    filterset_fields = ["status", "model_version", "method"]

    @extend_schema(request=CompressionInput, responses={202: CompressionOutput})
    def create(self, request):
        """Queue a method with its own options; those of another method are refused.

        The same of the same version that is under way is not queued again: the answer is then that job.
        """
        given = checked(CompressionInput, request)
        version = find(ModelVersion.objects.select_related("run"), given.pop("model_version"), "model_version")
        job = services.compress(version=version, method=given.pop("method"), options=given, actor=request.user, source=source_of(request))
        return Response(self.get_serializer(job).data, status=status.HTTP_202_ACCEPTED)


class ImportViewSet(JobActions):
    queryset = ImportJob.objects.select_related("created_by")
    serializer_class = ImportOutput


class DeploymentViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """The spans of time in which one version was live."""

    queryset = Deployment.objects.select_related("model_version", "created_by")
    serializer_class = DeploymentOutput
    filterset_fields = ["model_version", "reason"]


router = SimpleRouter()
router.register("model-versions", ModelVersionViewSet)
router.register("evaluations", EvaluationViewSet)
router.register("evaluation-sets", EvaluationSetViewSet)
router.register("compressions", CompressionViewSet)
router.register("imports", ImportViewSet)
router.register("deployments", DeploymentViewSet)
urlpatterns = [
    path("model-versions/<slug:pk>/files/<path:name>", VersionFileView.as_view()),
    path("model-versions/<slug:pk>/export/w8a8.tar", W8A8View.as_view()),
    *router.urls,
]
