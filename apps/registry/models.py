from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField
from apps.jobs.models import Job

VERSION_COLOURS = 8


class ModelVersion(models.Model):
    class Kind(models.TextChoices):
        MOE = "moe", _("MoE")
        DENSE = "dense", _("dense")
        INT8 = "int8", _("INT8")
        PRUNED = "pruned", _("pruned")
        DISTILLED = "distilled", _("distilled")
        ONNX = "onnx", _("ONNX")
        UPSTREAM = "upstream", _("upstream")

    class State(models.TextChoices):
        CANDIDATE = "candidate", _("candidate")
        LIVE = "live", _("live")
        RETIRED = "retired", _("retired")

    id = OpaqueIdField()
    number = models.PositiveIntegerField(help_text="orders the versions; a compressed child has its own")
    name = models.CharField(max_length=80, unique=True, help_text="v1, v2-int8")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    state = models.CharField(max_length=10, choices=State.choices, default=State.CANDIDATE)
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="children")
    draft = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="drafted", help_text="guesses ahead for it while it answers"
    )
    training_job = models.OneToOneField("training.TrainingJob", null=True, blank=True, on_delete=models.PROTECT, related_name="model_version")
    compression_job = models.ForeignKey("registry.CompressionJob", null=True, blank=True, on_delete=models.PROTECT, related_name="versions")
    run = models.ForeignKey(
        "datasets.ProcessingRun",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="model_versions",
        help_text="the processed data it, or its ancestor, was trained on",
    )
    folder = models.CharField(max_length=200, help_text="below the artifacts")
    files = models.JSONField(default=list, help_text="[{name, bytes, sha256}]")
    artifact_bytes = models.BigIntegerField(default=0)
    total_parameters = models.BigIntegerField(default=0)
    active_parameters = models.BigIntegerField(default=0)
    config = models.JSONField(default=dict)
    details = models.JSONField(default=dict, help_text="what its job measured: expert × domain, sparsity, speed")
    colour = models.PositiveSmallIntegerField(default=0)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["state"], condition=Q(state="live"), name="one_live_version")]

    def __str__(self) -> str:
        return self.name

    @property
    def is_compressed(self) -> bool:
        return self.compression_job_id is not None


class EvaluationSet(models.Model):
    """Held-out questions and claims, frozen by their hash."""

    id = OpaqueIdField()
    run = models.ForeignKey("datasets.ProcessingRun", on_delete=models.PROTECT, related_name="evaluation_sets")
    sha256 = models.CharField(max_length=64, unique=True)
    path = models.CharField(max_length=200, help_text="below the artifacts")
    questions = models.PositiveIntegerField()
    claims = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"#{self.sha256[:8]} ({self.questions})"


class Evaluation(Job):
    KIND = Job.Kind.EVALUATION

    model_version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="evaluations")
    evaluation_set = models.ForeignKey(EvaluationSet, on_delete=models.PROTECT, related_name="evaluations")
    folder = models.CharField(max_length=200, blank=True)
    metrics = models.JSONField(default=dict, help_text="bleu, bleu_low, bleu_high, refusal_rate, false_alarm_rate, questions, …")


class CompressionJob(Job):
    KIND = Job.Kind.COMPRESSION

    class Method(models.TextChoices):
        INT8 = "int8", "INT8"
        PRUNE = "prune", _("pruning")
        DISTILL = "distill", _("distillation")
        ONNX = "onnx", "ONNX"
        POLICY = "policy", _("policy")

    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="compression_jobs")
    method = models.CharField(max_length=10, choices=Method.choices)
    trail = models.JSONField(default=list, help_text="the policy's decisions, each with its measured figures")


class ImportJob(Job):
    KIND = Job.Kind.IMPORT

    name = models.CharField(max_length=80)
    source = models.CharField(max_length=500)
    model_version = models.ForeignKey(ModelVersion, null=True, on_delete=models.SET_NULL, related_name="+")


class GateDecision(models.Model):
    """What the gate said when it was asked: after an evaluation, and at every attempt to promote."""

    id = OpaqueIdField()
    model_version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="gate_decisions")
    baseline = models.ForeignKey(ModelVersion, null=True, on_delete=models.SET_NULL, related_name="+")
    evaluation_set = models.ForeignKey(EvaluationSet, null=True, on_delete=models.SET_NULL, related_name="+")
    passed = models.BooleanField()
    rules = models.JSONField(default=list, help_text="[{name, passed, value, threshold, reason}]")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.model_version_id} {'passed' if self.passed else 'refused'}"
