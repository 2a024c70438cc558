"""Opaque identifiers of rows: ULIDs (github.com/ulid/spec), so that sorting by id is sorting by creation."""

import os
import threading
import time

from django.db import models

ID_LENGTH = 26
_RANDOM_BITS = 80  # below those of the time, in ms
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's, 5 bits each
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_SHIFTS = range(10 * (ID_LENGTH // 2 - 1), -1, -10)
_lock, _last = threading.Lock(), 0


def new_id() -> str:
    """Larger than all others that this process made: within a millisecond, or where the clock was set back, by one."""
    global _last  # noqa: PLW0603 — one sequence a process
    with _lock:
        fresh = time.time_ns() // 1_000_000 << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8))
        _last = number = fresh if fresh >> _RANDOM_BITS > _last >> _RANDOM_BITS else _last + 1
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


class OpaqueIdField(models.CharField):
    """A primary key that tells outsiders nothing and never collides across databases."""

    def __init__(self, **options):
        super().__init__(**{"max_length": ID_LENGTH, "primary_key": True, "default": new_id, "editable": False, **options})
