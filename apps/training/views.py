from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


@login_required
def training(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_new(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_estimate(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_compare(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_compare_chart(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_job(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_chart(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_cancel(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})


@login_required
def training_resume(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "training"})

