import django_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter

from apps.accounts.parsers import BoundedJSONParser
from apps.accounts.permissions import MayChat, ReadOrOperate
from apps.datasets.api import DatasetOutput
from apps.feedback import selectors, services
from apps.feedback.models import Feedback
from apps.rest import IdentField, Resource, actor_of, checked, source_of
from apps.serving.api import SESSION_KEY
from apps.serving.chat import find_answer


class WholeNumber(serializers.IntegerField):
    """A JSON integer: neither 4.0 nor "4" nor true."""

    def to_internal_value(self, data):
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return data


class FeedbackOutput(serializers.Serializer):
    id = serializers.CharField()
    answer = serializers.CharField(source="answer_id")
    rating = serializers.IntegerField()
    comment = serializers.CharField()
    correction = serializers.CharField()
    question = serializers.CharField(source="answer.prompt")
    text = serializers.CharField(source="answer.text", help_text="of the answer")
    version = serializers.CharField(source="answer.model_version_id")
    version_name = serializers.CharField(source="answer.model_version.name")
    user = serializers.CharField(source="user.username", default=None, allow_null=True)
    dataset = serializers.CharField(source="dataset_id", allow_null=True, help_text="the dataset it became part of")
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class FeedbackInput(serializers.Serializer):
    answer = IdentField()
    rating = WholeNumber(min_value=1, max_value=5)
    comment = serializers.CharField(required=False, allow_blank=True, max_length=2000)
    correction = serializers.CharField(required=False, allow_blank=True, max_length=4000, help_text="what the answer should have been")


class FeedbackDatasetInput(serializers.Serializer):
    name = serializers.CharField(default="", allow_blank=True, max_length=120)


class FeedbackFilter(django_filters.FilterSet):
    version = django_filters.CharFilter(field_name="answer__model_version_id")
    conversation = django_filters.CharFilter(field_name="answer__conversation_id")
    new = django_filters.BooleanFilter(field_name="dataset", lookup_expr="isnull", label="in no dataset yet")

    class Meta:
        model = Feedback
        fields = ["rating", "answer", "dataset"]


class FeedbackViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Ratings of answers, with their questions and what the answer should have been."""

    queryset = selectors.feedback()
    serializer_class = FeedbackOutput
    parser_classes = [BoundedJSONParser]
    filterset_class = FeedbackFilter

    def get_permissions(self):
        return [MayChat()] if self.action == "create" else [ReadOrOperate()]

    @extend_schema(request=FeedbackInput, responses={201: FeedbackOutput, 200: FeedbackOutput})
    def create(self, request):
        """Rate an answer (201), or change its rating (200)."""
        given = checked(FeedbackInput, request)
        answer = find_answer(pk=given.pop("answer"), user=actor_of(request), guest_ids=request.session.get(SESSION_KEY, []))
        row, created = services.rate(answer=answer, user=actor_of(request), source=source_of(request), **given)
        return Response(FeedbackOutput(row).data, status=status.HTTP_201_CREATED if created else status.HTTP_200_OK)

    @extend_schema(request=FeedbackDatasetInput, responses={201: DatasetOutput})
    @action(detail=False, methods=["post"])
    def dataset(self, request):
        """All ratings that are in no dataset yet become one, ready to be processed and trained on."""
        given = checked(FeedbackDatasetInput, request)
        dataset = services.make_dataset(name=given["name"], actor=request.user, source=source_of(request))
        return Response(DatasetOutput(dataset).data, status=status.HTTP_201_CREATED)


router = SimpleRouter()
router.register("feedback", FeedbackViewSet)
urlpatterns = router.urls
