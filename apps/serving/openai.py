"""OpenAI's own shapes, so that its official client, and whatever was written for it, works unchanged.

The model named `dsportal` is whatever is live, or the running experiment's arm; any version's name or id is that version.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from django.http import Http404
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.parsers import BoundedJSONParser
from apps.accounts.permissions import SignedIn
from apps.accounts.problems import Busy, Missing, Problem, TooLong, openai_body, outage
from apps.accounts.quotas import Metered, Quota
from apps.registry.models import ModelVersion
from apps.rest import AlwaysJSON, as_json
from apps.serving import embeddings, services
from apps.serving.openai_requests import ChatRequest, CompletionRequest, EmbeddingsRequest, Request
from apps.serving.openai_shapes import ChatShape, CompletionShape, Shape, finish_reason_of
from apps.serving.questions import MAX_SEED
from apps.serving.routing import LIVE_NAMES, find_version
from apps.serving.services import Pending
from apps.serving.streams import HEARTBEAT, event, event_stream

SUBJECT_HEADER = "X-Conversation-Id"
_CODES = {Missing: "model_not_found", Busy: "rate_limit_exceeded", TooLong: "context_length_exceeded"}


def _body_of(error: Problem, request_class: type[Request | EmbeddingsRequest] | None) -> dict:
    params = {"version": "model"}
    if request_class:
        params |= dict.fromkeys(("prompt", "image"), request_class.text_param)
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    return openai_body(error.status, error.detail, param=params.get(error.field, error.field), reason=code)


def _message_of(error: ErrorDetails) -> str:
    """Pydantic puts its own words before ours."""
    return error["msg"].removeprefix("Value error, ")


def openai_errors(error: Exception, context: dict) -> Response | None:
    error, headers = outage(error) or error, {}
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        param = str(first["loc"][0]) if first["loc"] else None
        return Response(openai_body(400, f"{param}: {_message_of(first)}" if param else _message_of(first), param=param), status=400)
    if isinstance(error, Problem):
        if isinstance(error, Busy):
            headers["Retry-After"] = str(error.retry_after_seconds)
        return Response(_body_of(error, getattr(context["view"], "request_class", None)), status=error.status, headers=headers)
    if isinstance(error, exceptions.NotAuthenticated | exceptions.AuthenticationFailed):
        headers["WWW-Authenticate"] = "Bearer"
        return Response(openai_body(401, str(error.detail), reason="invalid_api_key"), status=401, headers=headers)
    if isinstance(error, exceptions.APIException):
        return Response(openai_body(error.status_code, str(error.detail)), status=error.status_code)
    if isinstance(error, Http404):
        return Response(openai_body(404, str(error)), status=404)
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
        """The versions by their names, and `live` for the one that is."""
        versions = list(ModelVersion.objects.only("name", "state", "created_at"))
        live = [_model(LIVE_NAMES[0], v.created_at.timestamp()) for v in versions if v.state == ModelVersion.State.LIVE]
        return Response({"object": "list", "data": [*live, *(_model(v.name, v.created_at.timestamp()) for v in versions)]})


class ModelView(OpenAIView):
    @extend_schema(
        responses=OpenApiTypes.OBJECT, operation_id="openai_model", tags=["openai"], parameters=[OpenApiParameter("name", str, OpenApiParameter.PATH)]
    )
    def get(self, request, name: str):
        """One version by its name."""
        if name in LIVE_NAMES:
            live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()
            if live is None:
                raise Missing("No version is live yet.", field="version")
            return Response(_model(name, live.created_at.timestamp()))
        return Response(_model(name, find_version(name).created_at.timestamp()))


# -- answers


class AnsweringView(OpenAIView):
    request_class: type[Request]
    shape_class: type[Shape]

    def answer(self, request):
        asked = self.request_class.model_validate(request.data)
        pendings = _ask(request, asked, self.quota)
        shape = self.shape_class(pendings)
        _send_ahead(pendings)
        if asked.stream:
            return event_stream(_chunks(pendings, asked, shape))
        for number, pending in enumerate(pendings):
            with _others_stopped(pendings[number + 1 :]):
                pending.whole()
        return as_json(shape.whole())


class ChatCompletionsView(AnsweringView):
    request_class, shape_class = ChatRequest, ChatShape

    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.OBJECT, operation_id="openai_chat_completions", tags=["openai"])
    def post(self, request):
        """Answer a conversation, whole or streamed, in OpenAI's shape."""
        return self.answer(request)


class CompletionsView(AnsweringView):
    request_class, shape_class = CompletionRequest, CompletionShape

    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.OBJECT, operation_id="openai_completions", tags=["openai"])
    def post(self, request):
        """Go on from a prompt, whole or streamed, in OpenAI's shape."""
        return self.answer(request)


class EmbeddingsView(OpenAIView):
    request_class = EmbeddingsRequest

    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.OBJECT, operation_id="openai_embeddings", tags=["openai"])
    def post(self, request):
        """A vector of length 1 for each text, in OpenAI's shape."""
        asked = EmbeddingsRequest.model_validate(request.data)
        found = embeddings.embed(texts=asked.texts, user=request.user, version=asked.model, quota=self.quota)
        data = [{"object": "embedding", "index": number, "embedding": asked.encoded(vector)} for number, vector in enumerate(found.vectors)]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return Response({"object": "list", "data": data, "model": found.version.name, "usage": usage})


def _ask(request, asked: Request, quota: Quota) -> list[Pending]:
    """As many answers on their way as there are choices. Each is a row of its own; seeds follow each other where one is given."""
    question = asked.question()
    first = next(m["content"] for m in question.messages if m["role"] == "user")
    # A conversation comes again with each turn, and begins the same: so its first question tells it from others.
    own = hashlib.sha256(f"{request.user.pk}:{first}".encode()).hexdigest()
    subject = request.headers.get(SUBJECT_HEADER, "")[:200] or (asked.user or "")[:200] or own
    pending = services.ask(question=question, user=request.user, channel="openai", version=asked.model, subject=subject, quota=quota)
    seeds = [None if question.seed is None else (question.seed + number) & MAX_SEED for number in range(1, asked.choices)]
    others = [
        Pending(question=replace(pending.question, seed=seed), route=pending.route, user=pending.user, channel="openai", quota=quota)
        for seed in seeds
    ]  # fmt: skip
    return [pending, *others]


def _send_ahead(pendings: list[Pending]) -> None:
    """Several are made at once; they are read one after the other."""
    for number, pending in enumerate(pendings if len(pendings) > 1 else ()):
        with _others_stopped(pendings[:number]):
            pending.send_ahead()


@contextmanager
def _others_stopped(others: list[Pending]) -> Iterator[None]:
    """Where this one's reader goes away, or it fails, nobody will read the others."""
    try:
        yield
    except BaseException:
        for other in others:
            other.cancel()
        raise


def _chunks(pendings: list[Pending], asked: Request, shape: Shape) -> Iterator[bytes]:
    """The stream. Its first piece is awaited here and now, so that a refusal is still a status and not an event."""
    pieces = pendings[0].pieces()
    with _others_stopped(pendings[1:]):
        first = next(pieces, None)
    return _written(pendings, asked, shape, first, pieces)


def _written(pendings: list[Pending], asked: Request, shape: Shape, first: str | None, pieces: Iterator[str]) -> Iterator[bytes]:
    """One choice after the other: those that were made meanwhile come at once."""
    with_usage = asked.include_usage
    blank = {"usage": None} if with_usage else {}
    try:
        for number, pending in enumerate(pendings):
            with _others_stopped(pendings[number + 1 :]):
                if number:
                    first, pieces = None, pending.pieces()
                for chunk in _choice(number, pending, shape, first, pieces):
                    yield event({**chunk, **blank}) if chunk else HEARTBEAT
    except Problem as problem:
        yield event(_body_of(problem, type(asked)))
        return
    if with_usage:
        yield event(json.dumps({**shape.head, "object": shape.chunk_object, "choices": [], "usage": shape.usage()}))
    yield event("[DONE]")


def _choice(number: int, pending: Pending, shape: Shape, first: str | None, pieces: Iterator[str]) -> Iterator[dict | None]:
    """The chunks of one choice; None for a sign of life."""
    try:
        if opening := shape.opening():
            yield shape.bare_chunk(number, opening)
        if first:
            yield shape.chunk(number, shape.piece(first))
        for piece in pieces:
            yield shape.chunk(number, shape.piece(piece)) if piece else None
    finally:
        pieces.close()
    yield shape.chunk(number, shape.closing(), finish_reason_of(pending))


urlpatterns = [
    path("v1/models", ModelsView.as_view()),
    path("v1/models/<path:name>", ModelView.as_view()),
    path("v1/chat/completions", ChatCompletionsView.as_view()),
    path("v1/completions", CompletionsView.as_view()),
    path("v1/embeddings", EmbeddingsView.as_view()),
]
