"""What all REST resources share."""

from typing import TypeVar

from django.db.models import Model, QuerySet
from django.utils.translation import gettext as _
from rest_framework import serializers
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from apps.accounts.models import User
from apps.accounts.problems import Missing

ID = "[0-9A-Za-z]{1,40}"  # of a row, in a path
MAX_ID_LENGTH = 80
Row = TypeVar("Row", bound=Model)


def source_of(request) -> str:
    """Where a request came from, for the audit log."""
    return request.META.get("REMOTE_ADDR", "")[:60]


def actor_of(request) -> User | None:
    """The person; None for a guest."""
    return request.user if request.user.is_authenticated else None


def find(rows: QuerySet[Row], pk: str | None, field: str) -> Row | None:
    """The row that a request's body names; None where it names none. Raises Missing, at the field."""
    if not pk:
        return None
    row = rows.filter(pk=pk).first()
    if row is None:
        noun = rows.model._meta.verbose_name
        raise Missing(_("There is no %(noun)s %(pk)s.") % {"noun": noun, "pk": repr(pk)}, field=field)
    return row


class FixedSerializer(serializers.Serializer):
    """Its fields are made once. DRF copies them for every request, which is a quarter of what an answer from the cache takes.

    Only for fields that do not look at the request.
    """

    @property
    def fields(self):
        kind = type(self)
        if "_made" not in kind.__dict__:
            kind._made = super().fields
        return kind._made


def checked(serializer: type[serializers.Serializer], request: Request) -> dict:
    """The request's body as the serializer reads it. Raises ValidationError."""
    given = serializer(data=request.data)
    given.is_valid(raise_exception=True)
    return dict(given.validated_data)


def read_query(serializer: type[serializers.Serializer], request: Request) -> dict:
    """The address's parameters as the serializer reads them. Raises ValidationError."""
    given = serializer(data=request.query_params)
    given.is_valid(raise_exception=True)
    return dict(given.validated_data)


class AlwaysJSON(BaseContentNegotiation):
    """For views that choose between JSON and an event stream by themselves: no Accept header is refused."""

    def select_parser(self, request, parsers):
        media = request.content_type.split(";")[0].strip().lower()
        return next((p for p in parsers if p.media_type == media), None)

    def select_renderer(self, request, renderers, format_suffix=None):
        return renderers[0], renderers[0].media_type


class IdentField(serializers.CharField):
    """The id of another row, or what a caller believes to be one."""

    def __init__(self, **options):
        super().__init__(**{"max_length": MAX_ID_LENGTH, **options})


class Resource(GenericViewSet):
    """Rows at `prefix/` and `prefix/ID/`; `queryset` brings along what the serializer reads, so that a list asks no row's own query."""

    lookup_value_regex = ID
    filterset_fields: list[str] = []
