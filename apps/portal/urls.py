from django.conf import settings
from django.urls import path

from apps.portal import views

urlpatterns = [
    path("", views.home, name="home"),
    path("palette/", views.palette, name="palette"),
    path("help/", views.help_page, name="help"),
    *([path("styleguide/", views.styleguide, name="styleguide")] if settings.DEBUG else []),
]
