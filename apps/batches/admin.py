from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.batches.models import BatchJob


@admin.register(BatchJob)
class BatchJobAdmin(ReadOnly):
    list_display = ("title", "model_version", "status", "progress", "created_at")
    list_filter = ("status",)
