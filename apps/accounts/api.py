import django_filters
from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView

from apps.accounts import selectors, services
from apps.accounts.models import ApiToken, AuditEntry, User
from apps.accounts.permissions import Administers, SignedIn
from apps.rest import Resource, checked, source_of

# -- tokens


class TokenOutput(serializers.Serializer):
    id = serializers.CharField()
    name = serializers.CharField()
    prefix = serializers.CharField(help_text="the first characters, to tell tokens apart")
    requests_per_minute = serializers.IntegerField(allow_null=True, help_text="null: as the settings say; 0: as many as it likes")
    tokens_per_minute = serializers.IntegerField(allow_null=True)
    created_at = serializers.DateTimeField()
    last_used_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)


class NewTokenOutput(TokenOutput):
    token = serializers.CharField(help_text="shown now and never again")


class TokenInput(serializers.Serializer):
    name = serializers.CharField(max_length=80)
    requests_per_minute = serializers.IntegerField(default=None, allow_null=True, min_value=0, max_value=10_000_000)
    tokens_per_minute = serializers.IntegerField(default=None, allow_null=True, min_value=0, max_value=1_000_000_000)


class TokenViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """One's own tokens."""

    queryset = ApiToken.objects.none()
    serializer_class = TokenOutput
    permission_classes = [SignedIn]

    def get_queryset(self):
        if getattr(self, "swagger_fake_view", False):
            return self.queryset
        return selectors.tokens_of(self.request.user)

    @extend_schema(request=TokenInput, responses={201: NewTokenOutput})
    def create(self, request):
        """A new token, which is shown now and never again."""
        given = checked(TokenInput, request)
        row, token = services.create_token(user=request.user, actor=request.user, source=source_of(request), **given)
        return Response({**TokenOutput(row).data, "token": token}, status=status.HTTP_201_CREATED)

    def destroy(self, request, pk=None):
        """Revoke it: the row stays, so that the audit log keeps its sense."""
        services.revoke_token(token=self.get_object(), actor=request.user, source=source_of(request))
        return Response(status=status.HTTP_204_NO_CONTENT)


# -- users


class UserOutput(serializers.Serializer):
    id = serializers.CharField(source="pk")
    username = serializers.CharField()
    email = serializers.CharField()
    role = serializers.ChoiceField(User.Role.choices)
    is_active = serializers.BooleanField()
    date_joined = serializers.DateTimeField()
    last_login = serializers.DateTimeField(allow_null=True)


class UserInput(serializers.Serializer):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=128, trim_whitespace=False)
    email = serializers.EmailField(default="", allow_blank=True)
    role = serializers.ChoiceField(User.Role.choices, default=User.Role.VIEWER)


class UserChange(serializers.Serializer):
    role = serializers.ChoiceField(User.Role.choices, required=False)
    is_active = serializers.BooleanField(required=False)
    password = serializers.CharField(required=False, max_length=128, trim_whitespace=False)


class UserViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Accounts with their roles, for administrators."""

    queryset = User.objects.order_by("-pk")
    serializer_class = UserOutput
    permission_classes = [Administers]
    lookup_value_regex = "[0-9]{1,18}"
    filterset_fields = ["role", "is_active", "username"]

    @extend_schema(request=UserInput, responses={201: UserOutput})
    def create(self, request):
        """A new account; a viewer's where no role is given."""
        user = services.create_user(**checked(UserInput, request), actor=request.user, source=source_of(request))
        return Response(UserOutput(user).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=UserChange)
    def partial_update(self, request, pk=None):
        """Change the role, lock the account or let it in again, set a new password."""
        user, given = self.get_object(), checked(UserChange, request)
        who = {"user": user, "actor": request.user, "source": source_of(request)}
        if "role" in given:
            services.change_role(role=given["role"], **who)
        if "is_active" in given:
            services.set_active(active=given["is_active"], **who)
        if "password" in given:
            services.change_password(password=given["password"], **who)
        return Response(UserOutput(user).data)


class MeView(APIView):
    permission_classes = [SignedIn]

    @extend_schema(responses=UserOutput, operation_id="me")
    def get(self, request):
        """Whose token this is."""
        return Response(UserOutput(request.user).data)


# -- the audit log


class AuditOutput(serializers.Serializer):
    id = serializers.CharField()
    actor = serializers.CharField(source="actor_name")
    action = serializers.CharField()
    object_kind = serializers.CharField()
    object_id = serializers.CharField()
    object_label = serializers.CharField()
    before = serializers.JSONField()
    after = serializers.JSONField()
    source = serializers.CharField()
    created_at = serializers.DateTimeField()


class AuditFilter(django_filters.FilterSet):
    actor = django_filters.CharFilter(field_name="actor_name", label="a user's name, or `system`")
    object = django_filters.CharFilter(field_name="object_id", label="id of the row that was changed")
    since = django_filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gte")
    until = django_filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="lt")

    class Meta:
        model = AuditEntry
        fields = ["action", "object_kind", "object_id"]


class AuditViewSet(ListModelMixin, RetrieveModelMixin, Resource):
    """Who changed what, from where, before and after."""

    queryset = selectors.audit_entries()
    serializer_class = AuditOutput
    filterset_class = AuditFilter


router = SimpleRouter()
router.register("tokens", TokenViewSet)
router.register("users", UserViewSet)
router.register("audit", AuditViewSet)
urlpatterns = [path("me/", MeView.as_view()), *router.urls]
