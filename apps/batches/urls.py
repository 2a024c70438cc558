from django.urls import path

from apps.batches import views

urlpatterns = [
    path("batches/", views.batch_list, name="batches"),
    path("batches/<str:pk>/", views.batch, name="batch"),
    path("batches/<str:pk>/answers.jsonl", views.batch_answers, name="batch_answers"),
]
