from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.serving.models import Answer, Conversation, Deployment, ScalingDecision


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly):
    list_display = ("model_version", "reason", "started_at", "ended_at", "created_by")
    list_filter = ("reason",)
    list_select_related = ("model_version", "created_by")


@admin.register(Conversation)
class ConversationAdmin(ReadOnly):
    list_display = ("title", "user", "updated_at")
    list_select_related = ("user",)


@admin.register(Answer)
class AnswerAdmin(ReadOnly):
    list_display = ("prompt", "model_version", "status", "cached", "latency_ms", "created_at")
    list_filter = ("status", "cached", "route")
    list_select_related = ("model_version",)
    search_fields = ("=id",)


@admin.register(ScalingDecision)
class ScalingDecisionAdmin(ReadOnly):
    list_display = ("created_at", "before", "replicas", "reason", "ready_seconds")
