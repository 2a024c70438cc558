"""What all REST resources share."""

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import orjson
from django.core.exceptions import ValidationError as FieldError
from django.db.models import Model, QuerySet
from django.http import HttpResponse
from django.utils.translation import gettext as _
from rest_framework import serializers
from rest_framework.fields import empty
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


class Reading(NamedTuple):
    """A field of what comes."""

    name: str
    check: Callable[[Any], Any]
    default: Any  # `empty` where it must be given


class Writing(NamedTuple):
    """A field of what goes."""

    name: str
    get: Callable[[Any], Any]  # of the object
    write: Callable[[Any], Any]


class FixedSerializer(serializers.Serializer):
    """Its fields are made once, and read and written past what DRF does for every request besides, which takes as long as finding a known answer.

    Only for fields that look at nothing but their own value, and for objects, not dictionaries.
    """

    @classmethod
    def read(cls, data: Any) -> dict | None:
        """What a body says. None where it has mistakes: `is_valid` tells them."""
        if type(data) is not dict:
            return None
        found = {}
        try:
            for name, check, default in _readings(cls):
                if name in data:
                    found[name] = check(data[name])
                elif default is empty:
                    return None
                else:
                    found[name] = default() if callable(default) else default
        except (serializers.ValidationError, FieldError):
            return None
        return found

    @classmethod
    def written(cls, row: Any) -> dict:
        """As `data` has it."""
        return {name: None if (value := get(row)) is None else write(value) for name, get, write in _writings(cls)}


@lru_cache
def _readings(kind: type[FixedSerializer]) -> list[Reading]:
    return [Reading(name, field.run_validation, empty if field.required else field.default) for name, field in kind().fields.items()]


@lru_cache
def _writings(kind: type[FixedSerializer]) -> list[Writing]:
    def getter(source: str) -> Callable[[Any], Any]:
        return (lambda row: row) if source == "*" else attrgetter(source)

    return [
        Writing(name, getter(field.source), field.written if isinstance(field, FixedSerializer) else field.to_representation)
        for name, field in kind().fields.items()
    ]


def as_json(body: dict) -> HttpResponse:
    """DRF's `Response` is made to be rendered later, in a form that the asker chooses: for what is always JSON that takes four times as long."""
    return HttpResponse(orjson.dumps(body), content_type="application/json")


def checked(serializer: type[serializers.Serializer], request: Request) -> dict:
    """The request's body as the serializer reads it. Raises ValidationError."""
    if issubclass(serializer, FixedSerializer) and (found := serializer.read(request.data)) is not None:
        return found
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
