from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.datasets.models import ProcessingRun
from apps.jobs.models import Job


class TrainingJob(Job):
    KIND = Job.Kind.TRAINING

    class Precision(models.TextChoices):
        FP32 = "fp32", "FP32"
        BF16 = "bf16", "BF16"
        FP16 = "fp16", _("FP16 with dynamic loss scaling")

    class Router(models.TextChoices):
        SOFTMAX = "softmax", "softmax(W x + b)"
        SIGMOID = "sigmoid", _("sigmoid, balanced by a bias")

    dataset = models.ForeignKey("datasets.Dataset", on_delete=models.PROTECT, related_name="training_jobs")
    run = models.ForeignKey(ProcessingRun, on_delete=models.PROTECT, related_name="training_jobs")
    parent = models.ForeignKey("registry.ModelVersion", null=True, blank=True, on_delete=models.PROTECT, related_name="training_jobs")
    preset = models.CharField(max_length=40)
    steps = models.PositiveIntegerField(null=True, blank=True)
    minutes = models.FloatField(null=True, blank=True)
    precision = models.CharField(max_length=4, choices=Precision.choices, default=Precision.BF16)
    accum_steps = models.PositiveSmallIntegerField(default=1)
    zero_stage = models.PositiveSmallIntegerField(default=0)
    world_size = models.PositiveSmallIntegerField(default=1)
    router = models.CharField(max_length=10, choices=Router.choices, default=Router.SOFTMAX)
    seed = models.PositiveIntegerField(default=0)
    spec_sha256 = models.CharField(max_length=64, blank=True)
    metrics = models.JSONField(default=dict, help_text="the last step's: loss, tokens_per_second, expert_load_max_over_mean, …")
