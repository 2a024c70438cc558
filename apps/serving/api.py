from collections.abc import Iterator

import django_filters
from django.db.models import Prefetch
from django.http import HttpRequest
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView

from apps.accounts.parsers import BoundedJSONParser
from apps.accounts.permissions import MayChat, SignedIn
from apps.accounts.problems import Busy, Problem
from apps.accounts.quotas import Metered
from apps.ids import new_id
from apps.rest import AlwaysJSON, FixedSerializer, IdentField, Resource, actor_of, as_json, checked
from apps.serving import chat, services
from apps.serving.answer_log import answers, settle_where_possible
from apps.serving.models import Answer, Conversation, ScalingDecision
from apps.serving.pictures import MAX_CHARACTERS as MAX_PICTURE_CHARACTERS
from apps.serving.pictures import accepted
from apps.serving.questions import MAX_TOKENS, Question
from apps.serving.services import Pending
from apps.serving.streams import HEARTBEAT, event, event_stream

SUBJECT_HEADER = "X-Conversation-Id"  # what an experiment keeps together, where a service has its own conversations
GUESTS_CONVERSATIONS = 50  # that one session remembers
SESSION_KEY = "conversations"


def subject_of(request: HttpRequest) -> str | None:
    return request.headers.get(SUBJECT_HEADER, "")[:200] or None


# -- one question, one answer


class ImageField(serializers.CharField):
    """A picture that the question is about."""

    def __init__(self, **given):
        said = "a PNG or JPEG as a data: URL or in base64; for versions that were trained with pictures"
        super().__init__(**{"default": None, "allow_null": True, "max_length": MAX_PICTURE_CHARACTERS, "help_text": said, **given})


class GenerateInput(FixedSerializer):
    prompt = serializers.CharField(trim_whitespace=False, max_length=None)
    max_tokens = serializers.IntegerField(default=64, min_value=1, max_value=MAX_TOKENS)
    temperature = serializers.FloatField(default=0.0, min_value=0, max_value=2)
    top_p = serializers.FloatField(default=1.0, min_value=0, max_value=1)
    top_k = serializers.IntegerField(default=0, min_value=0, max_value=1_000_000)
    seed = serializers.IntegerField(default=None, allow_null=True, min_value=0, max_value=2**31 - 1)
    stop = serializers.ListField(child=serializers.CharField(max_length=200, trim_whitespace=False), default=list, max_length=8)
    version = IdentField(default=None, allow_null=True, allow_blank=True, help_text="id or name of a model version; the live one where none is given")
    image = ImageField()


class UsageOutput(FixedSerializer):
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()


class GenerateOutput(FixedSerializer):
    answer = serializers.CharField(source="id", help_text="id of the answer, to rate it by")
    text = serializers.CharField()
    version = serializers.CharField(source="route.version.pk")
    version_name = serializers.CharField(source="route.version.name")
    cached = serializers.BooleanField()
    finish_reason = serializers.CharField(help_text="stop, or length where max_tokens cut it short")
    usage = UsageOutput(source="*")
    latency_ms = serializers.FloatField()
    first_token_ms = serializers.FloatField(allow_null=True)


class GenerateView(Metered, APIView):
    permission_classes = [SignedIn]
    content_negotiation_class = AlwaysJSON

    @extend_schema(request=GenerateInput, responses=GenerateOutput, tags=["serving"], operation_id="generate")
    def post(self, request):
        """Ask the live version, or another, one question; the answer comes whole."""
        given = checked(GenerateInput, request)
        version, image = given.pop("version"), given.pop("image")
        message = {"role": "user", "content": given.pop("prompt"), **({"image": accepted(image)} if image else {})}
        question = Question([message], **given)
        pending = services.ask(
            question=question, user=request.user, channel="generate", version=version, subject=subject_of(request) or new_id(), quota=self.quota
        )
        pending.whole()
        return as_json(GenerateOutput.written(pending))


# -- the chat


class ChatInput(serializers.Serializer):
    message = serializers.CharField(required=False, allow_blank=True, default="", trim_whitespace=False)
    conversation = IdentField(default=None, allow_null=True, help_text="goes on with it; a new one is begun where none is given")
    version = IdentField(default=None, allow_null=True, allow_blank=True, help_text="id or name; the live one where none is given")
    after = IdentField(default=None, allow_null=True, help_text="the answer that the message follows; the newest where none is given")
    replaces = IdentField(default=None, allow_null=True, help_text="the answer to make again, in place of a message")
    image = ImageField()
    max_tokens = serializers.IntegerField(default=chat.MAX_TOKENS, min_value=1, max_value=MAX_TOKENS)
    temperature = serializers.FloatField(default=None, allow_null=True, min_value=0, max_value=2)


class ChatView(APIView):
    """One turn, streamed.

    Events: `{"conversation", "answer", "version", "version_name", "colour"}`, then `{"text"}` for each piece, then
    `{"done": true, "version", "version_name", "colour", "cached", "latency_ms", "first_token_ms", "finish_reason", "usage"}`, or
    `{"error", "title", "status"}`. What is refused before the first event is a problem document with its status.
    """

    permission_classes = [MayChat]
    parser_classes = [BoundedJSONParser]
    content_negotiation_class = AlwaysJSON

    @extend_schema(
        request=ChatInput, responses={(200, "text/event-stream"): OpenApiTypes.STR}, tags=["serving"],
        operation_id="chat",
    )  # fmt: skip
    def post(self, request):
        given = checked(ChatInput, request)
        user, guest_ids = actor_of(request), request.session.get(SESSION_KEY, [])
        if pk := given.pop("conversation"):
            given["conversation"] = chat.find_conversation(pk=pk, user=user, guest_ids=guest_ids)
        pending = chat.say(user=user, **given)
        if user is None and pending.conversation.pk not in guest_ids:
            request.session[SESSION_KEY] = [*guest_ids, pending.conversation.pk][-GUESTS_CONVERSATIONS:]
        return event_stream(_turn(pending))


def _turn(pending: Pending) -> Iterator[bytes]:
    version = pending.route.version
    who = {"version": version.pk, "version_name": version.name, "colour": version.colour}
    yield event({"conversation": pending.conversation.pk, "answer": pending.id, **who})
    pieces = pending.pieces()
    try:
        for piece in pieces:
            yield event({"text": piece}) if piece else HEARTBEAT
    except Problem as problem:
        wait = {"retry_after_seconds": problem.retry_after_seconds} if isinstance(problem, Busy) else {}
        yield event({"error": problem.detail, "title": str(problem.title), "status": problem.status, **wait})
        return
    finally:
        pieces.close()
    usage = {"prompt_tokens": pending.prompt_tokens, "completion_tokens": pending.completion_tokens}
    yield event(
        {
            "done": True, **who, "cached": pending.cached, "latency_ms": pending.latency_ms, "first_token_ms": pending.first_token_ms,
            "finish_reason": pending.finish_reason, "usage": usage,
        }
    )  # fmt: skip


class TurnOutput(serializers.Serializer):
    id = serializers.CharField()
    prompt = serializers.CharField()
    text = serializers.CharField()
    status = serializers.ChoiceField(Answer.Status.choices)
    error = serializers.CharField()
    version = serializers.CharField(source="model_version_id")
    version_name = serializers.CharField(source="model_version.name")
    colour = serializers.IntegerField(source="model_version.colour")
    cached = serializers.BooleanField()
    usage = UsageOutput(source="*")
    latency_ms = serializers.FloatField()
    rating = serializers.IntegerField(source="feedback.rating", default=None, allow_null=True)
    comment = serializers.CharField(source="feedback.comment", default="", allow_blank=True)
    created_at = serializers.DateTimeField()


class AnswerOutput(TurnOutput):
    conversation = serializers.CharField(source="conversation_id", allow_null=True)
    experiment = serializers.CharField(source="experiment_id", allow_null=True)
    arm = serializers.CharField()
    user = serializers.CharField(source="user.username", default=None, allow_null=True)
    route = serializers.CharField(help_text="generate, chat or openai")
    first_token_ms = serializers.FloatField(allow_null=True)


class AnswerDetail(AnswerOutput):
    messages = serializers.JSONField(help_text="the whole conversation that was sent")
    parameters = serializers.JSONField()


class AnswerFilter(django_filters.FilterSet):
    version = django_filters.CharFilter(field_name="model_version_id")
    slower_than_ms = django_filters.NumberFilter(field_name="latency_ms", lookup_expr="gt")
    since = django_filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gte")
    until = django_filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="lt")

    class Meta:
        model = Answer
        fields = ["status", "conversation", "experiment", "arm", "cached", "route"]


class AnswerViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """The requests behind the figures: one's own, for operators all."""

    queryset = Answer.objects.select_related("model_version", "feedback", "user")
    filterset_class = AnswerFilter

    def get_queryset(self):
        if not getattr(self, "swagger_fake_view", False):
            settle_where_possible()
        rows = super().get_queryset()
        return rows if getattr(self.request.user, "may_operate", False) else rows.filter(user_id=self.request.user.pk)

    def get_serializer_class(self):
        return AnswerOutput if self.action == "list" else AnswerDetail


class ScalingDecisionOutput(serializers.ModelSerializer):
    ready_seconds = serializers.FloatField(allow_null=True, help_text="from the decision until all of a step up's workers answered")

    class Meta:
        model = ScalingDecision
        fields = ["id", "before", "replicas", "reason", "qps", "queue", "p99_ms", "capacity", "created_at", "ready_seconds"]


class ScalingDecisionViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """When the number of inference workers changed, and why."""

    queryset = ScalingDecision.objects.all()
    serializer_class = ScalingDecisionOutput


class ConversationOutput(serializers.Serializer):
    id = serializers.CharField()
    title = serializers.CharField()
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class ConversationDetail(ConversationOutput):
    turns = TurnOutput(source="in_order", many=True, help_text="oldest first; answers to one question made again follow each other")


class ConversationViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """One's own conversations."""

    queryset = Conversation.objects.none()
    permission_classes = [MayChat]

    def get_queryset(self):
        if getattr(self, "swagger_fake_view", False):
            return self.queryset
        rows = chat.conversations_of(actor_of(self.request), self.request.session.get(SESSION_KEY, []))
        if self.action == "list":
            return rows
        turns = answers().select_related("model_version", "feedback").order_by("id")
        return rows.prefetch_related(Prefetch("answers", queryset=turns, to_attr="in_order"))

    def get_serializer_class(self):
        return ConversationOutput if self.action == "list" else ConversationDetail

    def destroy(self, request, pk=None):
        """Forget it."""
        chat.forget(conversation=self.get_object())
        return Response(status=204)


router = SimpleRouter()
router.register("answers", AnswerViewSet)
router.register("conversations", ConversationViewSet)
router.register("scaling-decisions", ScalingDecisionViewSet)
urlpatterns = [path("generate/", GenerateView.as_view()), path("chat/", ChatView.as_view()), *router.urls]
