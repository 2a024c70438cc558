from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.ids import OpaqueIdField


class User(AbstractUser):
    class Role(models.TextChoices):
        VIEWER = "viewer", _("viewer")
        OPERATOR = "operator", _("operator")
        ADMIN = "admin", _("admin")

    role = models.CharField(max_length=10, choices=Role.choices, default=Role.VIEWER)

    @property
    def may_operate(self) -> bool:
        """Run pipelines, promote."""
        return self.role in (self.Role.OPERATOR, self.Role.ADMIN)

    @property
    def may_administer(self) -> bool:
        """Manage users and everybody's tokens."""
        return self.role == self.Role.ADMIN


class ApiToken(models.Model):
    """A bearer token. Only its SHA-256 is kept; 256 random bits need no salt or slow hash."""

    id = OpaqueIdField()
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(max_length=8, editable=False, help_text="the first characters, to tell tokens apart")
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True, help_text="none: as the settings say; 0: as many as it likes")
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True, help_text="read and written; as above")
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class AuditEntry(models.Model):
    """Who changed what, from where, before and after. Written by services, never changed."""

    id = OpaqueIdField()
    actor = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="audit_entries")
    actor_name = models.CharField(max_length=150, help_text="kept when the user is gone; 'system' for the portal itself")
    action = models.CharField(max_length=60, help_text="a verb with its noun, such as version.promote")
    object_kind = models.CharField(max_length=40)
    object_id = models.CharField(max_length=40)
    object_label = models.CharField(max_length=200)
    before = models.JSONField(default=dict)
    after = models.JSONField(default=dict)
    source = models.CharField(max_length=60, blank=True, help_text="address of the request, or the process")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["object_kind", "object_id"]), models.Index(fields=["action"])]

    def __str__(self) -> str:
        return f"{self.actor_name} {self.action} {self.object_label}"

    @property
    def changes(self) -> list[dict]:
        """Each field with what it was (None where it is new) and what it became, as text for people."""
        names = [*self.before, *(name for name in self.after if name not in self.before)]
        return [
            {
                "name": name.replace("_", " "),
                "before": _said(self.before[name]) if name in self.before else None,
                "after": _said(self.after.get(name)),
            }
            for name in names
        ]


def _said(value) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_said, value)) if isinstance(value, list) else str(value)
