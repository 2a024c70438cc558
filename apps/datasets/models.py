from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField
from apps.jobs.models import Job


class Dataset(models.Model):
    """Raw text as it came; the texts are in files, the row holds facts."""

    class Origin(models.TextChoices):
        UPLOAD = "upload", _("uploaded")
        FEEDBACK = "feedback", _("from ratings")
        DEMO = "demo", _("demonstration")

    id = OpaqueIdField()
    name = models.CharField(max_length=120)
    origin = models.CharField(max_length=10, choices=Origin.choices, default=Origin.UPLOAD)
    format = models.CharField(max_length=10, help_text="jsonl, csv, parquet or text")
    files = models.JSONField(default=list, help_text="[{path (below the artifacts), name, bytes, sha256}]")
    bytes = models.BigIntegerField(default=0)
    raw_rows = models.PositiveIntegerField(null=True, help_text="counted while processing")
    used_rows = models.PositiveIntegerField(null=True)
    current_run = models.ForeignKey("ProcessingRun", null=True, on_delete=models.SET_NULL, related_name="+")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name


class ProcessingRun(Job):
    """One pass of the pipeline over a dataset; its folder holds records.parquet, train.jsonl, eval.jsonl, report.json."""

    KIND = Job.Kind.PROCESSING

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="runs")
    folder = models.CharField(max_length=200, blank=True, help_text="below the artifacts; set when it succeeded")
    report = models.JSONField(default=dict)
