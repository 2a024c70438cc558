from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.registry.models import CompressionJob, Evaluation, EvaluationSet, GateDecision, ImportJob, ModelVersion


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnly):
    list_display = ("name", "kind", "state", "parent", "artifact_bytes", "total_parameters", "created_at")
    list_filter = ("kind", "state")
    list_select_related = ("parent",)
    search_fields = ("=id", "name")


@admin.register(Evaluation)
class EvaluationAdmin(ReadOnly):
    list_display = ("title", "status", "model_version", "evaluation_set", "created_at")
    list_filter = ("status",)
    list_select_related = ("model_version", "evaluation_set")


@admin.register(EvaluationSet)
class EvaluationSetAdmin(ReadOnly):
    list_display = ("sha256", "questions", "claims", "created_at")


@admin.register(GateDecision)
class GateDecisionAdmin(ReadOnly):
    list_display = ("model_version", "passed", "baseline", "created_at")
    list_filter = ("passed",)
    list_select_related = ("model_version", "baseline")


@admin.register(CompressionJob)
class CompressionJobAdmin(ReadOnly):
    list_display = ("title", "method", "status", "created_at")
    list_filter = ("method", "status")


@admin.register(ImportJob)
class ImportJobAdmin(ReadOnly):
    list_display = ("name", "source", "status", "created_at")
    list_filter = ("status",)
