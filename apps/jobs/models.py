"""The base row of all long work. Other apps extend it (multi-table inheritance), so that one reaper, one list and one
state machine serve them all."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField


class Job(models.Model):
    class Kind(models.TextChoices):
        PROCESSING = "processing", _("Processing")
        TRAINING = "training", _("Training")
        EVALUATION = "evaluation", _("Evaluation")
        COMPRESSION = "compression", _("Compression")
        IMPORT = "import", _("Import")
        BATCH = "batch", _("Batch")

    class Status(models.TextChoices):
        QUEUED = "queued", _("queued")
        RUNNING = "running", _("running")
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")
        CANCELLED = "cancelled", _("cancelled")

    id = OpaqueIdField()
    kind = models.CharField(max_length=16, choices=Kind.choices, editable=False)
    title = models.CharField(max_length=200)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    progress = models.FloatField(default=0.0, help_text="0 to 1")
    message = models.CharField(max_length=300, blank=True, help_text="what it is doing now")
    eta_seconds = models.FloatField(null=True, blank=True)
    error = models.TextField(blank=True)
    attempt = models.PositiveIntegerField(default=0, help_text="how often a worker has claimed it")
    cancel_requested = models.BooleanField(default=False)
    priority = models.SmallIntegerField(default=0, help_text="higher first")
    options = models.JSONField(default=dict, help_text="what was asked for")
    result = models.JSONField(default=dict, help_text="what the child process reported when it was done")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=100, blank=True)

    KIND: "Job.Kind"

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["status", "heartbeat_at"]), models.Index(fields=["kind", "status"])]

    def __str__(self) -> str:
        return self.title

    def save(self, *args, **kwargs):
        if not self.kind:
            self.kind = self.KIND
        super().save(*args, **kwargs)

    @property
    def is_active(self) -> bool:
        return self.status in (self.Status.QUEUED, self.Status.RUNNING)

    @property
    def duration_seconds(self) -> float | None:
        if self.started_at and self.finished_at:
            return (self.finished_at - self.started_at).total_seconds()
        return None


class JobEvent(models.Model):
    """One line a child process wrote (a training step, a sample answer, a stage reached), or one thing that befell the job."""

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    kind = models.CharField(max_length=20)
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["job", "kind", "id"])]

    def __str__(self) -> str:
        return f"{self.kind} of {self.job_id}"
