from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.datasets.models import Dataset, ProcessingRun


@admin.register(Dataset)
class DatasetAdmin(ReadOnly):
    list_display = ("name", "origin", "format", "bytes", "raw_rows", "used_rows", "created_at")
    list_filter = ("origin", "format")
    search_fields = ("=id", "name")


@admin.register(ProcessingRun)
class ProcessingRunAdmin(ReadOnly):
    list_display = ("title", "status", "progress", "created_at")
    list_filter = ("status",)
