from django.urls import path

from apps.experiments import views

urlpatterns = [
    path("experiments/", views.experiments, name="experiments"),
    path("experiments/<str:pk>/", views.experiment, name="experiment"),
    path("experiments/<str:pk>/start/", views.experiment_start, name="experiment_start"),
    path("experiments/<str:pk>/stop/", views.experiment_stop, name="experiment_stop"),
]
