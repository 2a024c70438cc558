"""OpenAI's own shapes, so that its official client, and whatever was written for it, works unchanged.

The model named `dsportal` is whatever is live, or the running experiment's arm; any version's name or id is that version.
"""

import hashlib
import json
import time
from collections.abc import Iterator

from django.http import Http404
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import ValidationError
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.parsers import BoundedJSONParser
from apps.accounts.permissions import SignedIn
from apps.accounts.problems import Busy, Missing, Problem
from apps.accounts.quotas import Metered, Quota
from apps.registry.models import ModelVersion
from apps.rest import AlwaysJSON
from apps.serving import services
from apps.serving.openai_requests import ChatRequest, CompletionRequest, Request
from apps.serving.routing import LIVE_NAMES, find_version
from apps.serving.services import Pending
from apps.serving.streams import HEARTBEAT, event, event_stream

SUBJECT_HEADER = "X-Conversation-Id"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict:
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _code_of(error: Problem) -> str | None:
    return "model_not_found" if isinstance(error, Missing) else "rate_limit_exceeded" if isinstance(error, Busy) else None


def _param_of(error: Problem) -> str | None:
    return "model" if error.field == "version" else "messages" if error.field in ("prompt", "image") else error.field


def openai_errors(error: Exception, context: dict) -> Response | None:
    headers = {}
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        param = str(first["loc"][0]) if first["loc"] else None
        return Response(error_body(400, f"{param}: {first['msg']}" if param else first["msg"], param=param), status=400)
    if isinstance(error, Problem):
        if isinstance(error, Busy):
            headers["Retry-After"] = str(error.retry_after_seconds)
        return Response(error_body(error.status, error.detail, param=_param_of(error), code=_code_of(error)), status=error.status, headers=headers)
    if isinstance(error, exceptions.NotAuthenticated | exceptions.AuthenticationFailed):
        headers["WWW-Authenticate"] = "Bearer"
        return Response(error_body(401, str(error.detail), code="invalid_api_key"), status=401, headers=headers)
    if isinstance(error, exceptions.APIException):
        return Response(error_body(error.status_code, str(error.detail)), status=error.status_code)
    if isinstance(error, Http404):
        return Response(error_body(404, str(error)), status=404)
    return None


class OpenAIView(Metered, APIView):
    permission_classes = [SignedIn]
    parser_classes = [BoundedJSONParser]
    content_negotiation_class = AlwaysJSON

    def get_exception_handler(self):
        return openai_errors


# -- models


def _model(name: str, created: float) -> dict:
    return {"id": name, "object": "model", "created": int(created), "owned_by": "dsportal"}


class ModelsView(OpenAIView):
    @extend_schema(responses=OpenApiTypes.OBJECT, operation_id="openai_models", tags=["openai"])
    def get(self, request):
        versions = list(ModelVersion.objects.only("name", "state", "created_at"))
        live = [_model(LIVE_NAMES[0], v.created_at.timestamp()) for v in versions if v.state == ModelVersion.State.LIVE]
        return Response({"object": "list", "data": [*live, *(_model(v.name, v.created_at.timestamp()) for v in versions)]})


class ModelView(OpenAIView):
    @extend_schema(
        responses=OpenApiTypes.OBJECT, operation_id="openai_model", tags=["openai"], parameters=[OpenApiParameter("name", str, OpenApiParameter.PATH)]
    )
    def get(self, request, name: str):
        if name in LIVE_NAMES:
            live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()
            if live is None:
                raise Missing("No version is live yet.", field="version")
            return Response(_model(name, live.created_at.timestamp()))
        return Response(_model(name, find_version(name).created_at.timestamp()))


# -- answers


class ChatCompletionsView(OpenAIView):
    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.OBJECT, operation_id="openai_chat_completions", tags=["openai"])
    def post(self, request):
        asked = ChatRequest.model_validate(request.data)
        pending = _ask(request, asked, self.quota)
        if asked.stream:
            return event_stream(_chunks(pending, asked, ChatShape(pending)))
        pending.whole()
        return Response(ChatShape(pending).whole())


class CompletionsView(OpenAIView):
    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.OBJECT, operation_id="openai_completions", tags=["openai"])
    def post(self, request):
        asked = CompletionRequest.model_validate(request.data)
        pending = _ask(request, asked, self.quota)
        if asked.stream:
            return event_stream(_chunks(pending, asked, CompletionShape(pending)))
        pending.whole()
        return Response(CompletionShape(pending).whole())


def _ask(request, asked: Request, quota: Quota) -> Pending:
    question = asked.question()
    first = next(m["content"] for m in question.messages if m["role"] == "user")
    # A conversation comes again with each turn, and begins the same: so its first question tells it from others.
    own = hashlib.sha256(f"{request.user.pk}:{first}".encode()).hexdigest()
    subject = request.headers.get(SUBJECT_HEADER, "")[:200] or (asked.user or "")[:200] or own
    return services.ask(question=question, user=request.user, channel="openai", version=asked.model, subject=subject, quota=quota)


class Shape:
    """How one answer is written, whole and in chunks."""

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, pending: Pending):
        self.pending = pending
        version = pending.route.version
        self.head = {
            "id": f"{self.prefix}-{pending.id}", "created": int(time.time()), "model": version.name, "system_fingerprint": version.pk,
        }  # fmt: skip

    def usage(self) -> dict:
        p = self.pending
        return {"prompt_tokens": p.prompt_tokens, "completion_tokens": p.completion_tokens, "total_tokens": p.prompt_tokens + p.completion_tokens}

    def whole(self) -> dict:
        choice = {"index": 0, **self.said(self.pending.text), "logprobs": None, "finish_reason": self.finish_reason}
        return {**self.head, "object": self.object, "choices": [choice], "usage": self.usage()}

    def chunk(self, piece: dict, finish_reason: str | None = None) -> dict:
        return {**self.head, "object": self.chunk_object, "choices": [{"index": 0, **piece, "logprobs": None, "finish_reason": finish_reason}]}

    @property
    def finish_reason(self) -> str:
        return "length" if self.pending.finish_reason == "length" else "stop"

    def said(self, text: str) -> dict:
        raise NotImplementedError

    def opening(self) -> dict | None:
        return None

    def piece(self, text: str) -> dict:
        raise NotImplementedError

    def closing(self) -> dict:
        raise NotImplementedError


class ChatShape(Shape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def said(self, text: str) -> dict:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> dict:
        return {"delta": {"role": "assistant", "content": ""}}

    def piece(self, text: str) -> dict:
        return {"delta": {"content": text}}

    def closing(self) -> dict:
        return {"delta": {}}


class CompletionShape(Shape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def said(self, text: str) -> dict:
        return {"text": text}

    def piece(self, text: str) -> dict:
        return {"text": text}

    def closing(self) -> dict:
        return {"text": ""}


def _chunks(pending: Pending, asked: Request, shape: Shape) -> Iterator[bytes]:
    """The stream. Its first piece is awaited here and now, so that a refusal is still a status and not an event."""
    pieces = pending.pieces()
    first = next(pieces, None)
    return _written(pending, asked, shape, first, pieces)


def _written(pending: Pending, asked: Request, shape: Shape, first: str | None, pieces: Iterator[str]) -> Iterator[bytes]:
    with_usage = asked.include_usage
    blank = {"usage": None} if with_usage else {}
    try:
        if opening := shape.opening():
            yield event({**shape.chunk(opening), **blank})
        if first:
            yield event({**shape.chunk(shape.piece(first)), **blank})
        for piece in pieces:
            yield event({**shape.chunk(shape.piece(piece)), **blank}) if piece else HEARTBEAT
    except Problem as problem:
        yield event(error_body(problem.status, problem.detail, param=_param_of(problem), code=_code_of(problem)))
        return
    finally:
        pieces.close()
    yield event({**shape.chunk(shape.closing(), shape.finish_reason), **blank})
    if with_usage:
        yield event(json.dumps({**shape.head, "object": shape.chunk_object, "choices": [], "usage": shape.usage()}))
    yield event("[DONE]")


urlpatterns = [
    path("v1/models", ModelsView.as_view()),
    path("v1/models/<path:name>", ModelView.as_view()),
    path("v1/chat/completions", ChatCompletionsView.as_view()),
    path("v1/completions", CompletionsView.as_view()),
]
