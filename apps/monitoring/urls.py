from django.urls import path

from apps.monitoring import views
from apps.monitoring.traces.views import request_phases

urlpatterns = [
    path("monitoring/", views.monitoring, name="monitoring"),
    path("monitoring/charts/", views.monitoring_charts_data, name="monitoring_charts"),
    path("monitoring/export.csv", views.monitoring_export, name="monitoring_export"),
    path("monitoring/requests/<str:name>/", request_phases, name="request_phases"),
    path("monitoring/alerts/<str:pk>/acknowledge/", views.alert_acknowledge, name="alert_acknowledge"),
    path("monitoring/silences/", views.silence_start, name="silence_start"),
    path("monitoring/silences/<str:pk>/end/", views.silence_end, name="silence_end"),
    path("advisor/", views.advisor, name="advisor"),
]
