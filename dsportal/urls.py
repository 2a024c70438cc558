"""Where everything lives. Pages are in each app's `urls.py`, REST in its `api.py`."""

from django.contrib import admin
from django.urls import include, path
from django.views.i18n import set_language
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from apps.accounts.permissions import SignedIn

# What is asked most comes first: resolvers are tried in their order, and with all others before it a third of a cached answer's time went there.
API = ("serving", "accounts", "datasets", "training", "registry", "experiments", "feedback", "batches", "monitoring", "jobs")
PAGES = ("portal", "accounts", "datasets", "training", "registry", "experiments", "feedback", "serving", "batches", "monitoring")

urlpatterns = [
    *(path("api/v1/", include(f"apps.{app}.api")) for app in API),
    path("api/v1/", include("apps.registry.upstream_api")),
    path("", include("apps.serving.openai")),
    path("admin/", admin.site.urls),
    path("language/", set_language, name="set_language"),
    path("api/schema/", SpectacularAPIView.as_view(permission_classes=[SignedIn]), name="schema"),
    path("api/schema/reference/", SpectacularSwaggerSplitView.as_view(permission_classes=[SignedIn]), name="reference"),
    path("", include("apps.monitoring.probes")),
    *(path("", include(f"apps.{app}.urls")) for app in PAGES),
]

handler400 = "apps.portal.views.bad_request"
handler403 = "apps.portal.views.forbidden"
handler404 = "apps.portal.views.not_found"
handler500 = "apps.portal.views.server_error"
