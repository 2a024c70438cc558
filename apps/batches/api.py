from django.conf import settings
from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter

from apps import artifacts
from apps.accounts.parsers import BoundedJSONParser
from apps.accounts.problems import TooLarge
from apps.batches import selectors, services
from apps.datasets.api import MULTIPART_SLACK_BYTES, find_dataset
from apps.datasets.services import too_large_message
from apps.jobs.api import JobActions, JobOutput
from apps.registry.models import ModelVersion
from apps.rest import IdentField, checked, find, source_of
from apps.serving.questions import MAX_SEED


class BatchOutput(JobOutput):
    model_version = serializers.CharField(source="model_version_id")
    dataset = serializers.CharField(source="dataset_id", allow_null=True)
    prompts_name = serializers.CharField()
    answers_url = serializers.SerializerMethodField(help_text="where the answers are to be downloaded (JSONL); null until it has succeeded")

    def get_answers_url(self, job) -> str | None:
        return f"{self.get_url(job)}answers/" if job.answers else None


class BatchInput(serializers.Serializer):
    model_version = IdentField()
    dataset = IdentField(required=False, help_text="a dataset in JSONL whose rows have a prompt, a question or messages")
    file = serializers.FileField(required=False, help_text="JSONL, in place of a dataset (multipart)")
    records = serializers.ListField(child=serializers.DictField(), required=False, allow_empty=False, help_text="in place of a dataset")
    max_tokens = serializers.IntegerField(default=256)
    temperature = serializers.FloatField(default=0.0)
    system = serializers.CharField(default="", allow_blank=True, help_text="said before each prompt that brings no system message")
    seed = serializers.IntegerField(default=0, min_value=0, max_value=MAX_SEED)


class BatchViewSet(JobActions):
    queryset = selectors.batches()
    serializer_class = BatchOutput
    parser_classes = [BoundedJSONParser, MultiPartParser]
    filterset_fields = ["status", "model_version", "dataset"]

    @extend_schema(request={"multipart/form-data": BatchInput, "application/json": BatchInput}, responses={202: BatchOutput})
    def create(self, request):
        """Answer many prompts while nobody waits."""
        if int(request.META.get("CONTENT_LENGTH") or 0) > settings.MAX_UPLOAD_BYTES + MULTIPART_SLACK_BYTES:
            raise TooLarge(too_large_message(), field="file")  # before a byte of it is read
        given = checked(BatchInput, request)
        version = find(ModelVersion.objects.all(), given.pop("model_version"), "model_version")
        dataset, upload = find_dataset(given.pop("dataset", None)), given.pop("file", None)
        job = services.start(
            version=version,
            dataset=dataset,
            upload=upload,
            records=given.pop("records", None),
            **given,
            actor=request.user,
            source=source_of(request),
        )
        return Response(self.get_serializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses={(200, "application/x-ndjson"): OpenApiTypes.BINARY}, filters=False)
    @action(detail=True, pagination_class=None, filterset_fields=[])
    def answers(self, request, pk=None):
        """The rows as they came, in their order, each with its answer or why it has none."""
        job = self.get_object()
        file = artifacts.open_file(selectors.require_answers(job))
        return FileResponse(file, as_attachment=True, filename=f"answers-{job.pk}.jsonl", content_type="application/x-ndjson")


router = SimpleRouter()
router.register("batch-jobs", BatchViewSet)
urlpatterns = router.urls
