from django.urls import path

from apps.feedback import views

urlpatterns = [
    path("feedback/", views.feedback, name="feedback"),
    path("feedback/dataset/", views.feedback_dataset, name="feedback_dataset"),
    path("feedback/export.jsonl", views.feedback_export, name="feedback_export"),
    path("feedback/<str:pk>/correct/", views.feedback_correct, name="feedback_correct"),
]
