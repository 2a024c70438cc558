from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


@login_required
def models(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def version(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def promote(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def rollback(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def evaluate(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def compress(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def version_answers(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def version_file(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def compression(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def compression_chart(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def compression_job(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def job_cancel(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})


@login_required
def job_resume(request: HttpRequest, pk: str = "", name: str = "") -> HttpResponse:
    return render(request, "base.html", {"section": "models"})

