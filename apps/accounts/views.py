"""Signing in, API tokens, users, the audit log."""

import csv
import json
from collections.abc import Iterator

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from apps.accounts import services
from apps.accounts.forms import SignInForm, TokenForm, UserForm
from apps.accounts.models import ApiToken, AuditEntry, User
from apps.accounts.problems import Problem
from apps.accounts.reference import endpoints as all_endpoints
from apps.accounts.selectors import audit_entries, tokens_of
from apps.portal.pages import administrators_only, back, page_of, refuse
from apps.registry.selectors import live_version
from apps.rest import source_of


class SignIn(LoginView):
    template_name = "registration/login.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True


# -- API access


@login_required
def api(request: HttpRequest) -> HttpResponse:
    """Tokens, examples, reference. A new token is in the answer to its own form only, and kept nowhere."""
    form, token = TokenForm(request.POST or None), None
    if request.method == "POST" and form.is_valid():
        try:
            _row, token = services.create_token(user=request.user, actor=request.user, source=source_of(request), **form.cleaned_data)
            form = TokenForm()
        except Problem as problem:
            refuse(form, problem)
    values = {"section": "api", "form": form, "token": token, "tokens": tokens_of(request.user)[:100]}
    if request.htmx:
        return render(request, "accounts/_tokens.html", values)
    return render(request, "accounts/api.html", {**values, "base": request.build_absolute_uri("/").rstrip("/"), "live": live_version()})


@login_required
def endpoints(request: HttpRequest) -> HttpResponse:
    return render(request, "accounts/_endpoints.html", {"groups": all_endpoints()})


@require_POST
@login_required
def token_revoke(request: HttpRequest, pk: str) -> HttpResponse:
    token = get_object_or_404(ApiToken.objects.select_related("user"), pk=pk)
    try:
        services.revoke_token(token=token, actor=request.user, source=source_of(request))
    except Problem as problem:
        raise PermissionDenied(problem.detail) from problem
    messages.success(request, _("The token “%(name)s” is revoked; whoever used it is refused from now on.") % {"name": token.name})
    return redirect("api")


# -- users


@administrators_only
def users(request: HttpRequest) -> HttpResponse:
    form = UserForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            user = services.create_user(**form.cleaned_data, actor=request.user, source=source_of(request))
        except Problem as problem:
            refuse(form, problem)
        else:
            messages.success(request, _("%(name)s may sign in now.") % {"name": user.username})
            return redirect("users")
    rows = User.objects.order_by("-is_active", "username")[:500]
    return render(request, "accounts/users.html", {"section": "users", "form": form, "rows": rows, "roles": User.Role.choices})


@require_POST
@administrators_only
def user_role(request: HttpRequest, pk: int) -> HttpResponse:
    user = get_object_or_404(User, pk=pk)
    return _changed(
        request, lambda: services.change_role(user=user, role=request.POST.get("role", ""), actor=request.user, source=source_of(request))
    )


@require_POST
@administrators_only
def user_active(request: HttpRequest, pk: int) -> HttpResponse:
    user, active = get_object_or_404(User, pk=pk), request.POST.get("active") == "1"
    return _changed(request, lambda: services.set_active(user=user, active=active, actor=request.user, source=source_of(request)))


def _changed(request: HttpRequest, change) -> HttpResponse:
    try:
        user = change()
    except Problem as problem:
        messages.error(request, problem.detail)
    else:
        state = user.get_role_display() if user.is_active else _("switched off")
        messages.success(request, _("%(name)s: %(state)s.") % {"name": user.username, "state": state})
    return back(request, "users")


# -- audit


@login_required
def audit(request: HttpRequest) -> HttpResponse:
    page = page_of(_filtered(request), request)
    actions = AuditEntry.objects.order_by("action").values_list("action", flat=True).distinct()
    values = {"section": "audit", "page": page, "actions": actions, "filtered": any(request.GET.get(name) for name in ("actor", "action", "object"))}
    return render(request, "accounts/audit.html", values)


def _filtered(request: HttpRequest) -> QuerySet[AuditEntry]:
    rows = audit_entries()
    if actor := request.GET.get("actor", "").strip():
        rows = rows.filter(actor_name__icontains=actor)
    if action := request.GET.get("action", "").strip():
        rows = rows.filter(action=action)
    if wanted := request.GET.get("object", "").strip():
        rows = rows.filter(Q(object_label__icontains=wanted) | Q(object_id=wanted) | Q(object_kind=wanted))
    return rows


class _Echo:
    """What csv.writer writes into: hands the line straight back."""

    def write(self, line: str) -> str:
        return line


def _cell(text: str) -> str:
    """A spreadsheet must not run what somebody typed as a name."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


@login_required
def audit_export(request: HttpRequest) -> StreamingHttpResponse:
    writer = csv.writer(_Echo())

    def lines() -> Iterator[str]:
        yield writer.writerow(["time", "actor", "action", "object_kind", "object_id", "object", "before", "after", "source"])
        for row in _filtered(request).iterator(chunk_size=2000):
            before, after = (json.dumps(values, ensure_ascii=False) for values in (row.before, row.after))
            texts = [row.actor_name, row.action, row.object_kind, row.object_id, row.object_label]
            yield writer.writerow([row.created_at.isoformat(), *map(_cell, texts), before, after, row.source])

    headers = {"Content-Disposition": 'attachment; filename="audit.csv"'}
    return StreamingHttpResponse(lines(), content_type="text/csv; charset=utf-8", headers=headers)
