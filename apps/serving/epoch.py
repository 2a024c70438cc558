"""What serves now. A mark in Redis changes with every promotion, roll-back and experiment; what a process remembers of routes and answers holds
for as long as the mark is the same."""

import redis

from apps.ids import new_id
from apps.monitoring import names
from apps.redis import connection


def current() -> str | None:
    """None where Redis does not say: then nothing that is remembered may be used."""
    try:
        r = connection()
        if mark := r.get(names.SERVING_EPOCH):
            return mark
        r.set(names.SERVING_EPOCH, new_id(), nx=True)
        return r.get(names.SERVING_EPOCH)
    except redis.RedisError:
        return None


def change() -> None:
    """Something else serves from now on. To be called once that is committed. A mark never comes again, not even after Redis was wiped."""
    connection().set(names.SERVING_EPOCH, new_id())
