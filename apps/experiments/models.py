from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField


class Experiment(models.Model):
    """An A/B test of two versions on live traffic. A conversation's arm is a hash of its id and this row's."""

    class Status(models.TextChoices):
        DRAFT = "draft", _("draft")
        RUNNING = "running", _("running")
        STOPPED = "stopped", _("stopped")

    id = OpaqueIdField()
    name = models.CharField(max_length=120)
    control = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="+")
    treatment = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="+")
    split = models.FloatField(default=0.5, help_text="share of conversations that the treatment answers")
    metrics = models.JSONField(default=list, help_text="rating, accuracy, recall, latency")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.DRAFT)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    stopped_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["status"], condition=Q(status="running"), name="one_running_experiment")]

    def __str__(self) -> str:
        return self.name
