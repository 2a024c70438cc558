from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.experiments.models import Experiment


@admin.register(Experiment)
class ExperimentAdmin(ReadOnly):
    list_display = ("name", "status", "control", "treatment", "split", "started_at", "stopped_at")
    list_filter = ("status",)
    list_select_related = ("control", "treatment")
