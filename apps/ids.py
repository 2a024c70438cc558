"""Opaque identifiers of rows: ULIDs, so that sorting by id is sorting by creation."""

from django.db import models
from ulid import ULID

ID_LENGTH = 26


def new_id() -> str:
    return str(ULID())


class OpaqueIdField(models.CharField):
    """A primary key that tells outsiders nothing and never collides across databases."""

    def __init__(self, **options):
        super().__init__(**{"max_length": ID_LENGTH, "primary_key": True, "default": new_id, "editable": False, **options})
