"""A counter that says "something worth a refresh has changed", so that pages may ask cheaply."""

import logging

import redis

from apps.monitoring import names
from apps.redis import connection

log = logging.getLogger(__name__)


def changed() -> None:
    try:
        connection().incr(names.EVENTS)
    except redis.RedisError as error:  # pages look by themselves every few seconds
        log.warning("pages were not told of a change: %s", error)


def revision() -> str:
    """Changes with every change; empty while Redis cannot be asked."""
    try:
        return connection().get(names.EVENTS) or "0"
    except redis.RedisError:
        return ""
