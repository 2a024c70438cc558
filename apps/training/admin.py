from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.training.models import TrainingJob


@admin.register(TrainingJob)
class TrainingJobAdmin(ReadOnly):
    list_display = ("title", "preset", "status", "progress", "precision", "zero_stage", "world_size", "created_at")
    list_filter = ("status", "preset", "precision")
