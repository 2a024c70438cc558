from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField


class Demonstration(models.Model):
    """The loop's first turn on an empty home. The row remembers what was begun; the rows it points to say how far it is."""

    class Status(models.TextChoices):
        RUNNING = "running", _("running")
        DONE = "done", _("done")
        STOPPED = "stopped", _("stopped")

    id = OpaqueIdField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.RUNNING)
    error = models.TextField(blank=True)
    dataset = models.ForeignKey("datasets.Dataset", null=True, on_delete=models.SET_NULL, related_name="+")
    run = models.ForeignKey("datasets.ProcessingRun", null=True, on_delete=models.SET_NULL, related_name="+")
    first_job = models.ForeignKey("training.TrainingJob", null=True, on_delete=models.SET_NULL, related_name="+")
    second_job = models.ForeignKey("training.TrainingJob", null=True, on_delete=models.SET_NULL, related_name="+")
    compression = models.ForeignKey("registry.CompressionJob", null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"demonstration of {self.created_at:%Y-%m-%d}"
