from django.urls import path

from apps.registry import upstream_views, views

urlpatterns = [
    path("models/", views.models, name="models"),
    path("models/import/", views.import_model, name="model_import"),
    path("models/upstream/", upstream_views.upstreams, name="upstreams"),
    path("models/<str:pk>/upstream/", upstream_views.state, name="upstream_state"),
    path("models/<str:pk>/", views.version, name="version"),
    path("models/<str:pk>/charts/", views.version_charts, name="version_charts"),
    path("models/<str:pk>/promote/", views.promote, name="promote"),
    path("models/<str:pk>/rollback/", views.rollback, name="rollback"),
    path("models/<str:pk>/evaluate/", views.evaluate, name="evaluate"),
    path("models/<str:pk>/draft/", views.choose_draft, name="version_draft"),
    path("models/<str:pk>/compress/", views.compress, name="compress"),
    path("models/<str:pk>/answers/", views.version_answers, name="version_answers"),
    path("models/<str:pk>/export/w8a8.tar", views.version_w8a8, name="version_w8a8"),
    path("models/<str:pk>/files/<path:name>", views.version_file, name="version_file"),
    path("compression/", views.compression, name="compression"),
    path("compression/chart/", views.compression_chart, name="compression_chart"),
    path("compression/<str:pk>/", views.compression_job, name="compression_job"),
    path("compression/<str:pk>/chart/", views.compression_job_chart, name="compression_job_chart"),
    path("jobs/<str:pk>/cancel/", views.job_cancel, name="job_cancel"),
    path("jobs/<str:pk>/resume/", views.job_resume, name="job_resume"),
]
