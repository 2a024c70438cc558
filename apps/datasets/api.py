from django.conf import settings
from django.db.models import OuterRef, Subquery
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.parsers import MultiPartParser
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter

from apps.accounts.parsers import BoundedJSONParser
from apps.accounts.problems import Conflict, TooLarge
from apps.datasets import selectors, services
from apps.datasets.models import Dataset, ProcessingRun
from apps.jobs.api import JobActions, JobOutput
from apps.jobs.models import Job
from apps.rest import Resource, checked, find, read_query, source_of

MULTIPART_SLACK_BYTES = 1 << 20
RUNS_SHOWN = 20


class ProcessingRunOutput(JobOutput):
    dataset = serializers.CharField(source="dataset_id")


class DatasetFileOutput(serializers.Serializer):
    name = serializers.CharField()
    bytes = serializers.IntegerField()
    sha256 = serializers.CharField()


class DatasetOutput(serializers.Serializer):
    id = serializers.CharField()
    name = serializers.CharField()
    origin = serializers.ChoiceField(Dataset.Origin.choices)
    format = serializers.CharField(help_text="jsonl, csv, parquet, text, or mixed")
    bytes = serializers.IntegerField()
    files = DatasetFileOutput(many=True)
    status = serializers.SerializerMethodField(help_text="of the newest processing run; `uploaded` where there is none")
    progress = serializers.FloatField(source="latest_progress", default=0.0)
    raw_rows = serializers.IntegerField(allow_null=True)
    used_rows = serializers.IntegerField(allow_null=True)
    current_run = serializers.CharField(source="current_run_id", allow_null=True, help_text="the processing run that trainings read")
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    created_at = serializers.DateTimeField()

    def get_status(self, dataset) -> str:
        return getattr(dataset, "latest_status", None) or "uploaded"


class DatasetDetail(DatasetOutput):
    jobs = serializers.SerializerMethodField(help_text="its processing runs, newest first")

    @extend_schema_field(ProcessingRunOutput(many=True))
    def get_jobs(self, dataset) -> list[dict]:
        rows = dataset.runs.select_related("created_by").order_by("-id")[:RUNS_SHOWN]
        return ProcessingRunOutput(rows, many=True, context=self.context).data


class DatasetInput(serializers.Serializer):
    name = serializers.CharField(max_length=120)
    file = serializers.FileField(required=False, allow_empty_file=True, help_text="JSONL, CSV, Parquet or plain text (multipart)")
    records = serializers.ListField(child=serializers.JSONField(), required=False, allow_empty=False, help_text="in place of a file")


class ProcessInput(serializers.Serializer):
    seed = serializers.IntegerField(default=0, min_value=0, max_value=2**31 - 1)


class ReportOutput(serializers.Serializer):
    run = serializers.CharField()
    funnel = serializers.ListField(child=serializers.DictField())
    reasons = serializers.DictField(child=serializers.IntegerField())
    domains = serializers.DictField(child=serializers.IntegerField())
    languages = serializers.DictField(child=serializers.IntegerField(), required=False)
    duplicates = serializers.DictField(child=serializers.IntegerField())


class RecordsQuery(serializers.Serializer):
    stage = serializers.CharField(default="", allow_blank=True, max_length=40, help_text="where it was dropped, or `used`")
    reason = serializers.CharField(default="", allow_blank=True, max_length=80)
    domain = serializers.CharField(default="", allow_blank=True, max_length=80)
    kind = serializers.CharField(default="", allow_blank=True, max_length=20, help_text="document, entry, question, claim, rating")
    lang = serializers.CharField(default="", allow_blank=True, max_length=20)
    split = serializers.CharField(default="", allow_blank=True, max_length=20, help_text="train or eval")
    label = serializers.ChoiceField(["", "true", "false"], default="", help_text="of a claim")
    q = serializers.CharField(default="", allow_blank=True, max_length=200, help_text="words in its text")
    after = serializers.IntegerField(default=None, allow_null=True, min_value=-1, max_value=2**62, help_text="cursor: the row before the page")
    before = serializers.IntegerField(default=None, allow_null=True, min_value=0, max_value=2**62, help_text="cursor: the row after the page")
    page_size = serializers.IntegerField(default=selectors.PAGE_RECORDS, min_value=1, max_value=500)


class RecordOutput(serializers.Serializer):
    row = serializers.IntegerField()
    id = serializers.CharField()
    kind = serializers.CharField(allow_null=True)
    stage = serializers.CharField()
    reason = serializers.CharField(allow_null=True)
    domain = serializers.CharField(allow_null=True)
    lang = serializers.CharField(allow_null=True)
    title = serializers.CharField(allow_null=True, required=False)
    text = serializers.CharField(allow_null=True)
    original = serializers.CharField(allow_null=True, help_text="before cleaning, where that changed it")
    question = serializers.CharField(allow_null=True)
    answer = serializers.CharField(allow_null=True)
    label = serializers.BooleanField(allow_null=True)
    rating = serializers.IntegerField(allow_null=True)
    cluster = serializers.IntegerField(allow_null=True, help_text="of near-duplicates")
    source = serializers.CharField(allow_null=True, help_text="id of the entry it was made from")
    split = serializers.CharField(allow_null=True)


class RecordsOutput(serializers.Serializer):
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    results = RecordOutput(many=True)


def _with_newest_run():
    newest = ProcessingRun.objects.filter(dataset=OuterRef("pk")).order_by("-pk")
    return selectors.datasets().annotate(latest_status=Subquery(newest.values("status")[:1]), latest_progress=Subquery(newest.values("progress")[:1]))


class DatasetViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Uploaded texts, questions and ratings, and how far their processing is."""

    queryset = _with_newest_run()
    parser_classes = [BoundedJSONParser, MultiPartParser]
    filterset_fields = ["origin", "name", "format"]

    def get_serializer_class(self):
        return DatasetDetail if self.action == "retrieve" else DatasetOutput

    @extend_schema(request={"multipart/form-data": DatasetInput, "application/json": DatasetInput}, responses={201: DatasetOutput})
    def create(self, request):
        """A file (multipart), or records (JSON)."""
        if int(request.META.get("CONTENT_LENGTH") or 0) > settings.MAX_UPLOAD_BYTES + MULTIPART_SLACK_BYTES:
            raise TooLarge(services.too_large_message(), field="file")  # before a byte of it is read
        given = checked(DatasetInput, request)
        who = {"name": given["name"], "actor": request.user, "source": source_of(request)}
        if "records" in given and "file" not in given:
            dataset = services.create_from_records(records=given["records"], **who)
        else:
            dataset = services.create_from_upload(upload=given.get("file"), **who)
        return Response(DatasetOutput(dataset).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=ProcessInput, responses={202: ProcessingRunOutput})
    @action(detail=True, methods=["post"])
    def process(self, request, pk=None):
        """Queue its cleaning: duplicates go, questions are made and some are held out; 409 while that is under way."""
        options = checked(ProcessInput, request)
        run = services.process(dataset=self.get_object(), actor=request.user, options=options, source=source_of(request))
        return Response(ProcessingRunOutput(run, context={"request": request}).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses=ReportOutput, filters=False)
    @action(detail=True, pagination_class=None, filterset_fields=[])
    def report(self, request, pk=None):
        """What the newest finished run kept, step by step, and why rows were dropped; domains, languages, duplicates."""
        run = _processed(self.get_object())
        return Response({"run": run.pk, **run.report})

    @extend_schema(parameters=[RecordsQuery], responses=RecordsOutput, filters=False)
    @action(detail=True, pagination_class=None, filterset_fields=[])
    def records(self, request, pk=None):
        """The rows of the newest finished run, kept and dropped, in their order."""
        query = read_query(RecordsQuery, request)
        after, before, size = query.pop("after"), query.pop("before"), query.pop("page_size")
        page = selectors.records(_processed(self.get_object()), selectors.RecordFilter(**query), after=after, before=before, limit=size)

        def link(**cursor) -> str:
            asked = request.query_params.copy()
            for name in ("after", "before"):
                asked.pop(name, None)
            asked.update({name: str(value) for name, value in cursor.items()})
            return request.build_absolute_uri(f"{request.path}?{asked.urlencode()}")

        return Response(
            {
                "next": link(after=page.after) if page.after is not None else None,
                "previous": link(before=page.before) if page.before is not None else None,
                "results": page.records,
            }
        )


def _processed(dataset: Dataset) -> ProcessingRun:
    run = dataset.current_run
    if run is None or run.status != Job.Status.SUCCEEDED:
        raise Conflict(_("This dataset has not been processed yet: process it first."), field="dataset")
    return run


class ProcessingRunViewSet(JobActions):
    queryset = ProcessingRun.objects.select_related("created_by")
    serializer_class = ProcessingRunOutput
    filterset_fields = ["status", "dataset"]


def find_dataset(pk: str | None, field: str = "dataset") -> Dataset | None:
    return find(Dataset.objects.select_related("current_run"), pk, field)


router = SimpleRouter()
router.register("datasets", DatasetViewSet)
router.register("processing-runs", ProcessingRunViewSet)
urlpatterns = router.urls
