from django.contrib import admin

from apps.accounts.admin import ReadOnly
from apps.feedback.models import Feedback


@admin.register(Feedback)
class FeedbackAdmin(ReadOnly):
    list_display = ("answer", "rating", "user", "dataset", "created_at")
    list_filter = ("rating",)
    list_select_related = ("answer", "user", "dataset")
