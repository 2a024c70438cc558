from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.monitoring.models import Alert, MetricHour, MetricMinute


@admin.register(Alert)
class AlertAdmin(ReadOnly):
    list_display = ("rule", "state", "value", "threshold", "started_at", "resolved_at", "acknowledged_by")
    list_filter = ("rule", "state")
    list_select_related = ("acknowledged_by",)


@admin.register(MetricMinute)
class MetricMinuteAdmin(ReadOnly):
    list_display = ("minute", "version", "requests", "errors", "cached")
    list_filter = ("version",)


@admin.register(MetricHour)
class MetricHourAdmin(ReadOnly):
    list_display = ("hour", "version", "requests", "errors", "cached")
    list_filter = ("version",)
