from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


@login_required
def monitoring(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "monitoring"})


@login_required
def monitoring_chart(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "monitoring"})


@login_required
def monitoring_export(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "monitoring"})


@login_required
def alert_acknowledge(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "monitoring"})


@login_required
def advisor(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "monitoring"})

