"""Errors for people, and their form over REST (RFC 9457 problem details)."""

import logging

import redis
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from kombu.exceptions import OperationalError as BrokerUnreachable
from rest_framework import exceptions, status
from rest_framework.response import Response
from rest_framework.views import exception_handler, set_rollback

from apps.accounts.middleware import current_request_id

log = logging.getLogger(__name__)
QUEUE_OUTAGES = (redis.RedisError, BrokerUnreachable)


class Problem(Exception):
    """A use case refused: what, why, what next. Pages show `detail`; the API adds the rest."""

    status = status.HTTP_400_BAD_REQUEST
    title = gettext_lazy("The request cannot be carried out")

    def __init__(self, detail: str, *, field: str | None = None, **extra):
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.extra = extra


class Conflict(Problem):
    status = status.HTTP_409_CONFLICT
    title = gettext_lazy("Not possible in the present state")


class Refused(Problem):
    status = status.HTTP_403_FORBIDDEN
    title = gettext_lazy("Not allowed")


class Missing(Problem):
    status = status.HTTP_404_NOT_FOUND
    title = gettext_lazy("Not found")


class TooLong(Problem):
    """For what the model can read."""


class TooLarge(Problem):
    status = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    title = gettext_lazy("Too large")


class Busy(Problem):
    status = status.HTTP_429_TOO_MANY_REQUESTS
    title = gettext_lazy("Too many requests at once")

    def __init__(self, detail: str, *, retry_after_seconds: int = 1, **extra):
        super().__init__(detail, **extra)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(Problem):
    status = status.HTTP_503_SERVICE_UNAVAILABLE
    title = gettext_lazy("Not available at the moment")


class TimedOut(Problem):
    status = status.HTTP_504_GATEWAY_TIMEOUT
    title = gettext_lazy("No answer in time")


def queue_outage() -> Unavailable:
    return Unavailable(_("The queue cannot be reached at the moment; it is being restarted. Ask again in a few seconds."))


def outage(error: BaseException | None) -> Unavailable | None:
    """The refusal for an error that is an outage of the queue or the database, wherever in a request it came up; None for any other."""
    if isinstance(error, QUEUE_OUTAGES):
        log.warning("the queue could not be reached: %r", error)
        return queue_outage()
    if isinstance(error, OperationalError | InterfaceError):
        log.warning("the database could not be reached: %r", error)
        return Unavailable(
            _("The database cannot be reached at the moment, or has too much to do. Nothing was half-done; try again in a few seconds.")
        )
    return None


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def openai_body(code: int, message: str, *, param: str | None = None, reason: str | None = None) -> dict:
    """An error as OpenAI's API tells it. `reason`: its `code`."""
    kind = _OPENAI_TYPES.get(code) or ("server_error" if code >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": reason}}


def plain_refusal(request: HttpRequest, code: int, title: str, detail: str, *, reason: str | None = None) -> JsonResponse:
    """An error from outside of DRF's views, in the form of the API that was addressed."""
    if request.path.startswith("/v1/"):
        return JsonResponse(openai_body(code, detail, reason=reason), status=code)
    return JsonResponse(_body(code, title, detail), status=code, content_type="application/problem+json")


def _body(code: int, title: str, detail, **extra) -> dict:
    return {"type": "about:blank", "title": title, "status": code, "detail": detail, "request_id": current_request_id(), **extra}


def body_of(problem: Problem) -> dict:
    errors = {problem.field: [problem.detail]} if problem.field else None
    return _body(problem.status, str(problem.title), problem.detail, **problem.extra, **({"errors": errors} if errors else {}))


def _first_message(detail) -> str:
    if isinstance(detail, dict):
        name, value = next(iter(detail.items()))
        text = _first_message(value)
        return text if name in ("detail", "non_field_errors") else f"{name}: {text}"
    if isinstance(detail, list):
        return _first_message(detail[0]) if detail else ""
    return str(detail)


def problem_details(error: Exception, context: dict) -> Response | None:
    """DRF's exception handler: every error leaves as application/problem+json."""
    error, headers = outage(error) or error, {}
    if isinstance(error, ValidationError):
        error = exceptions.ValidationError(error.message_dict if hasattr(error, "error_dict") else {"detail": error.messages})
    if isinstance(error, Problem):
        set_rollback()
        if isinstance(error, Busy):
            headers["Retry-After"] = str(error.retry_after_seconds)
        return Response(body_of(error), status=error.status, headers=headers, content_type="application/problem+json")
    if not isinstance(error, exceptions.APIException | Http404 | PermissionDenied):
        return None
    response = exception_handler(error, context)
    if response is None:
        return None
    titles = {
        400: _("The request has mistakes"), 401: _("Sign in first"), 403: _("Not allowed"), 404: _("Not found"), 405: _("Method not allowed"),
        413: _("Too large"),
    }  # fmt: skip
    extra = {"errors": response.data} if isinstance(error, exceptions.ValidationError) else {}
    detail = _first_message(response.data)
    body = _body(response.status_code, titles.get(response.status_code, _("The request was refused")), detail, **extra)
    response.data = body
    response.content_type = "application/problem+json"
    return response
