from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField


class Rollup(models.Model):
    """A stretch of requests, rolled up; `version` is empty for all versions together."""

    version = models.CharField(max_length=26, blank=True)
    requests = models.PositiveIntegerField(default=0)
    errors = models.PositiveIntegerField(default=0)
    cached = models.PositiveIntegerField(default=0)
    refused = models.PositiveIntegerField(default=0, help_text="as there was too much to do; not among the requests")
    steps = models.PositiveBigIntegerField(default=0, help_text="forwards of engines")
    written_tokens = models.PositiveBigIntegerField(default=0, help_text="by engines")
    read_tokens = models.PositiveBigIntegerField(default=0, help_text="by engines")
    latency = models.JSONField(default=dict, help_text="histogram: log bin → requests, see apps.monitoring.histogram")
    first_token = models.JSONField(default=dict, help_text="the same, of the time to the first token")
    phases = models.JSONField(default=dict, help_text="phase → µs that the requests were in it, see apps.monitoring.buckets")
    queue_depth = models.FloatField(default=0.0)
    replicas = models.FloatField(default=0.0)
    memory_bytes = models.FloatField(default=0.0, help_text="of web, jobs and inference processes together")

    class Meta:
        abstract = True


class MetricMinute(Rollup):
    """Kept for a week."""

    minute = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "minute"], name="one_row_a_minute")]

    def __str__(self) -> str:
        return f"{self.minute:%H:%M} {self.version}"


class MetricHour(Rollup):
    """Kept for a year."""

    hour = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "hour"], name="one_row_an_hour")]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H} {self.version}"


class Alert(models.Model):
    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        FIRING = "firing", _("firing")
        RESOLVED = "resolved", _("resolved")

    id = OpaqueIdField()
    rule = models.CharField(max_length=40)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    value = models.FloatField(help_text="the worst seen")
    threshold = models.FloatField()
    message = models.CharField(max_length=300)
    started_at = models.DateTimeField(auto_now_add=True)
    fired_at = models.DateTimeField(null=True, blank=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    acknowledged_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["rule", "state"])]

    def __str__(self) -> str:
        return f"{self.rule} {self.state}"


class Notice(models.Model):
    """That an alert fired, or is over: to be told to whoever asked to be told, until each of them knows."""

    id = OpaqueIdField()
    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, related_name="notices")
    state = models.CharField(max_length=10, choices=Alert.State.choices, help_text="that the alert came to")
    known_by = models.JSONField(default=list, help_text="who has been reached")
    tries = models.PositiveSmallIntegerField(default=0)
    due_at = models.DateTimeField(null=True, db_index=True, help_text="when it is tried next; empty once nothing is left to do")

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.alert} after {self.tries} tries"


class Silence(models.Model):
    """Nobody is told of a rule's alerts until then. An empty rule is all of them."""

    id = OpaqueIdField()
    rule = models.CharField(max_length=40, blank=True)
    reason = models.CharField(max_length=200, blank=True)
    until = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, help_text="when it was ended before its time")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.rule or "all rules"
