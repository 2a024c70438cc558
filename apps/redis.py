"""A process's connections to Redis. Every call has a timeout, and is tried again."""

from functools import lru_cache

import redis
from django.conf import settings
from redis.backoff import ExponentialBackoff
from redis.retry import Retry


@lru_cache(maxsize=1)
def connection() -> redis.Redis:
    return _connected(redis.ConnectionError, redis.TimeoutError)


@lru_cache(maxsize=1)
def counting() -> redis.Redis:
    """For what must not be done twice, such as adding to a counter. After a timeout nobody knows whether it was done: it is not tried again. A connection
    that Redis closed is one over which nothing was done."""
    return _connected(redis.ConnectionError)


def _connected(*tried_again: type[Exception]) -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_URL,
        decode_responses=True,
        socket_timeout=10,
        socket_connect_timeout=3,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 5, supported_errors=tried_again),
    )
