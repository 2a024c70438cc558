"""What all pages share: who may press what, refusals told in words, paging by cursor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from apps.accounts.problems import Problem

View = Callable[..., HttpResponse]
PAGE_ROWS = 50


def administrators_only(view: View) -> View:
    @login_required
    @wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not request.user.may_administer:
            raise PermissionDenied(_("This page is for administrators; your role may not open it."))
        return view(request, *args, **kwargs)

    return checked


def action(view: View) -> View:
    """A POST by an operator that changes something and leads to a page. What the service refuses is said on the page it came from."""

    @require_POST
    @login_required
    @wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not request.user.may_operate:
            raise PermissionDenied
        try:
            return view(request, *args, **kwargs)
        except Problem as problem:
            messages.error(request, problem.detail)
            return back(request)

    return checked


def back(request: HttpRequest, otherwise: str = "home") -> HttpResponseRedirect:
    """To the page that the form was on: its own `next` field, else the referring page, if either is of this portal."""
    for address in (request.POST.get("next", ""), request.META.get("HTTP_REFERER", "")):
        if address and url_has_allowed_host_and_scheme(address, allowed_hosts={request.get_host()}, require_https=request.is_secure()):
            return redirect(address)
    return redirect(otherwise)


def refuse(form: Form, problem: Problem) -> None:
    """Put a service's refusal at the form's field, or above the form."""
    form.add_error(problem.field if problem.field in form.fields else None, problem.detail)


@dataclass(frozen=True)
class Page:
    """Rows of one page, newest first; `next` and `previous` are query strings, as `parts/_pages.html` wants them."""

    rows: list[Model]
    next: str | None
    previous: str | None

    @property
    def shown(self) -> int:
        return len(self.rows)


def page_of(rows: QuerySet, request: HttpRequest, size: int = PAGE_ROWS) -> Page:
    """One page of rows in the order of their ids (which is that of creation): `?before=ID` older ones, `?after=ID` newer ones."""
    before, after = request.GET.get("before", ""), request.GET.get("after", "")
    if after:
        found = list(rows.filter(pk__gt=after).order_by("pk")[: size + 1])
        newer, older = len(found) > size, True
        found = found[:size][::-1]
    else:
        found = list((rows.filter(pk__lt=before) if before else rows).order_by("-pk")[: size + 1])
        newer, older = bool(before), len(found) > size
        found = found[:size]
    if not found:
        return Page([], None, None)
    return Page(found, _with(request, before=found[-1].pk) if older else None, _with(request, after=found[0].pk) if newer else None)


def _with(request: HttpRequest, **cursor: str) -> str:
    values = request.GET.copy()
    for name in ("before", "after", "fragment"):
        values.pop(name, None)
    values.update(cursor)
    return f"?{values.urlencode()}"
