"""Home, the palette, help; and error pages: what happened, why, what to do now, with the id that finds the log line."""

import sys

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _

from apps.accounts.middleware import current_request_id
from apps.accounts.problems import outage, plain_refusal
from apps.portal import loop
from apps.portal.context import stations_and_keys
from apps.portal.home import snapshot
from apps.portal.palette import search


@login_required
def home(request: HttpRequest) -> HttpResponse:
    now = snapshot()
    demo = now.demonstration
    values = {
        "section": "home",
        "headline": loop.headline(now),
        "stations": loop.stations(now),
        "needs": loop.needs(now),
        "events": loop.events(now),
        "demo": demo,
        "next_stage": next((stage for stage in demo.stages if stage.status == "waiting"), None) if demo else None,
        "waiting": now.waiting(),
        "quiet": loop.quiet(now),
    }
    return render(request, "portal/_home.html" if "fragment" in request.GET else "portal/home.html", values)


@login_required
def palette(request: HttpRequest) -> HttpResponse:
    """The palette's results; without scripts a page with a search field."""
    asked = request.GET.get("q", "").strip()[:80]
    values = {"section": "", "asked": asked, "groups": search(asked, request.user)}
    return render(request, "portal/_palette.html" if "fragment" in request.GET else "portal/palette.html", values)


@login_required
def help_page(request: HttpRequest) -> HttpResponse:
    return render(request, "portal/help.html", {"section": "help", "places": stations_and_keys()})


@login_required
def styleguide(request: HttpRequest) -> HttpResponse:
    """Every component once; development only."""
    return render(request, "portal/styleguide.html", {"section": "", "colours": range(8)})


def _error(request: HttpRequest, status: int, title: str, detail: str) -> HttpResponse:
    if request.path.startswith(("/api/", "/v1/")):
        return plain_refusal(request, status, title, detail)
    values = {"status": status, "title": title, "detail": detail, "request_id": current_request_id()}
    return render(request, "error.html", values, status=status)


def bad_request(request, exception=None):
    return _error(request, 400, _("The request has mistakes"), _("The browser sent something that cannot be read. Go back and try again."))


def forbidden(request, exception=None):
    return _error(request, 403, _("Not allowed"), str(exception or "") or _("Your role may not do this. Ask an administrator for the role operator."))


def not_found(request, exception=None):
    return _error(request, 404, _("Not found"), _("There is nothing at this address. It may have been removed, or the link has a mistake."))


def server_error(request):
    if refusal := outage(sys.exc_info()[1]):  # Django calls this while it handles the error
        return _error(request, refusal.status, str(refusal.title), refusal.detail)
    return _error(request, 500, _("Something went wrong here"), _("The fault is ours and is in the log. Nothing you entered was half-done."))


def csrf_failure(request, reason=""):
    detail = _("Go back, reload the page and send it again; it was open for too long or came from elsewhere.")
    return _error(request, 403, _("The form has expired"), detail)
