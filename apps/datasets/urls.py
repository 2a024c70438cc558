from django.urls import path

from apps.datasets import views

urlpatterns = [
    path("datasets/", views.datasets, name="datasets"),
    path("datasets/<str:pk>/", views.dataset, name="dataset"),
    path("datasets/<str:pk>/process/", views.dataset_process, name="dataset_process"),
    path("datasets/<str:pk>/cancel/", views.dataset_cancel, name="dataset_cancel"),
    path("datasets/<str:pk>/resume/", views.dataset_resume, name="dataset_resume"),
    path("datasets/<str:pk>/cleaned/", views.dataset_cleaned, name="dataset_cleaned"),
    path("datasets/<str:pk>/duplicates/", views.dataset_duplicates, name="dataset_duplicates"),
    path("datasets/<str:pk>/questions/", views.dataset_questions, name="dataset_questions"),
    path("datasets/<str:pk>/negatives/", views.dataset_negatives, name="dataset_negatives"),
    path("datasets/<str:pk>/records/", views.dataset_records, name="dataset_records"),
    path("datasets/<str:pk>/files/<str:name>", views.dataset_file, name="dataset_file"),
]
