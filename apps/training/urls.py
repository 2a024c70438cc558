from django.urls import path

from apps.training import views

urlpatterns = [
    path("training/", views.training, name="training"),
    path("training/new/", views.training_new, name="training_new"),
    path("training/new/estimate/", views.training_estimate, name="training_estimate"),
    path("training/compare/", views.training_compare, name="training_compare"),
    path("training/compare/chart/", views.training_compare_chart, name="training_compare_chart"),
    path("training/<str:pk>/", views.training_job, name="training_job"),
    path("training/<str:pk>/charts/", views.training_charts, name="training_charts"),
    path("training/<str:pk>/cancel/", views.training_cancel, name="training_cancel"),
    path("training/<str:pk>/resume/", views.training_resume, name="training_resume"),
]
