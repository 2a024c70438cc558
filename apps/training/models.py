from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.datasets.models import ProcessingRun
from apps.jobs.models import Job
from apps.training.recipe import recipe_of


class TrainingJob(Job):
    KIND = Job.Kind.TRAINING

    class Precision(models.TextChoices):
        FP32 = "fp32", "FP32"
        BF16 = "bf16", "BF16"
        FP16 = "fp16", _("FP16 with dynamic loss scaling")

    class Router(models.TextChoices):
        SOFTMAX = "softmax", "softmax(W x + b)"
        SIGMOID = "sigmoid", _("sigmoid, balanced by a bias")

    class Method(models.TextChoices):
        FULL = "full", _("all weights")
        LORA = "lora", _("LoRA: small adapters, merged at the end")

    class Objective(models.TextChoices):
        SFT = "sft", _("the answers themselves")
        DPO = "dpo", _("DPO: the better of two rated answers")
        KTO = "kto", _("KTO: answers rated good or bad")

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
    method = models.CharField(max_length=4, choices=Method.choices, default=Method.FULL)
    lora = models.JSONField(default=dict, blank=True, help_text="rank, alpha, targets; empty where the method is full")
    objective = models.CharField(max_length=3, choices=Objective.choices, default=Objective.SFT)
    stages = models.JSONField(default=list, blank=True, help_text="[{kind, share, rehearsal}]; empty: the dataset's mixture throughout")
    seed = models.PositiveIntegerField(default=0)
    domain_routing = models.FloatField(
        default=0.0,
        validators=[MinValueValidator(0.0), MaxValueValidator(1.0)],
        help_text="weight of the mutual information of expert and domain",
    )
    spec_sha256 = models.CharField(max_length=64, blank=True)
    metrics = models.JSONField(default=dict, help_text="the last step's: loss, tokens_per_second, expert_load_max_over_mean, …")

    @property
    def expert_parallel_size(self) -> int:
        """Ranks over which each layer's experts are spread."""
        return self.options.get("spec", {}).get("expert_parallel_size", 1)

    @property
    def recipe(self) -> dict:
        """What of the way it learns differs from the defaults."""
        return recipe_of(self.options)
