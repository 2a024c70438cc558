from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField


class Deployment(models.Model):
    """A span of time in which one version was live."""

    class Reason(models.TextChoices):
        FIRST = "first", _("first version")
        PROMOTION = "promotion", _("promotion")
        ROLLBACK = "rollback", _("roll-back")

    id = OpaqueIdField()
    model_version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="deployments")
    reason = models.CharField(max_length=10, choices=Reason.choices)
    gate = models.ForeignKey("registry.GateDecision", null=True, on_delete=models.SET_NULL, related_name="+")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    started_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.model_version} from {self.started_at:%Y-%m-%d %H:%M}"


class Conversation(models.Model):
    id = OpaqueIdField()
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="conversations",
        help_text="empty for a guest's, which only the guest's session knows",
    )
    title = models.CharField(max_length=120)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-updated_at"]

    def __str__(self) -> str:
        return self.title


class Answer(models.Model):
    class Status(models.TextChoices):
        OK = "ok", _("answered")
        CANCELLED = "cancelled", _("stopped")
        ERROR = "error", _("failed")

    id = OpaqueIdField()
    conversation = models.ForeignKey(Conversation, null=True, blank=True, on_delete=models.SET_NULL, related_name="answers")
    model_version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="answers")
    experiment = models.ForeignKey("experiments.Experiment", null=True, blank=True, on_delete=models.SET_NULL, related_name="answers")
    arm = models.CharField(max_length=10, blank=True, help_text="control or treatment")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="answers")
    route = models.CharField(max_length=20, help_text="generate, chat, openai")
    prompt = models.TextField(help_text="the last question")
    prompt_key = models.CharField(max_length=64, db_index=True, help_text="hash of the normalised question, to find known answers")
    messages = models.JSONField(default=list, help_text="the whole conversation that was sent")
    parameters = models.JSONField(default=dict)
    text = models.TextField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OK)
    error = models.CharField(max_length=300, blank=True)
    cached = models.BooleanField(default=False)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    latency_ms = models.FloatField(default=0.0)
    first_token_ms = models.FloatField(null=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)  # when it ended; its row is written a moment later

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["experiment", "arm"]), models.Index(fields=["created_at", "latency_ms"])]

    def __str__(self) -> str:
        return self.prompt[:60]


class ScalingDecision(models.Model):
    """The autoscaler changed the number of inference workers, and why."""

    id = OpaqueIdField()
    before = models.PositiveIntegerField()
    replicas = models.PositiveIntegerField()
    reason = models.CharField(max_length=200)
    qps = models.FloatField(help_text="answers asked for a second, without those from the cache")
    queue = models.FloatField(help_text="answers in flight")
    p99_ms = models.FloatField(null=True)
    capacity = models.FloatField(null=True, help_text="answers a second of one worker, as learnt")
    created_at = models.DateTimeField(auto_now_add=True)
    ready_at = models.DateTimeField(null=True, help_text="when a step up had all its workers answering")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.before} → {self.replicas}"

    @property
    def ready_seconds(self) -> float | None:
        return (self.ready_at - self.created_at).total_seconds() if self.ready_at else None
