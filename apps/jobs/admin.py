from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.jobs.models import Job


@admin.register(Job)
class JobAdmin(ReadOnly):
    list_display = ("title", "kind", "status", "progress", "attempt", "worker", "created_at")
    list_filter = ("kind", "status")
    search_fields = ("=id", "title")
