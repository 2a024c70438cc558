"""What the views of every page share: who may press a button, from where, and how a refusal is told."""

from collections.abc import Callable
from functools import wraps

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from apps.accounts.problems import Problem

View = Callable[..., HttpResponse]


def operator_page(view: View) -> View:
    """A page whose form changes something: for operators and administrators."""

    @login_required
    @wraps(view)
    def guarded(request: HttpRequest, *args, **kwargs) -> HttpResponse:
        if not request.user.may_operate:
            raise PermissionDenied(_("Your role may look, but not change anything. Ask an administrator for the role operator."))
        return view(request, *args, **kwargs)

    return guarded


def operator_action(view: View) -> View:
    """A button that changes something: by POST only, by operators and administrators."""
    return operator_page(require_POST(view))


def source_of(request: HttpRequest) -> str:
    """The address the audit log shows beside the name."""
    return request.META.get("REMOTE_ADDR", "")[:60]


def refuse(request: HttpRequest, problem: Problem) -> None:
    """Tell every reason of a refusal; they are shown with the next page."""
    for reason in problem.extra.get("reasons") or [problem.detail]:
        messages.error(request, reason)


def put_at_field(form: Form, problem: Problem) -> None:
    """Show the refusal at the field it is about, or above the form where it is about none of them."""
    form.add_error(problem.field if problem.field in form.fields else None, problem.detail)
