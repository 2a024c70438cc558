"""A process's connections to Redis. Every call has a timeout; what may be done twice is tried again after one."""

from collections.abc import Mapping
from functools import lru_cache

import redis
from django.conf import settings
from redis.backoff import ExponentialBackoff
from redis.commands.core import Script
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


# KEYS: hashes and streams. ARGV, for each of them: how many seconds a hash is kept (0: it is a stream), how many names and values, and these.
_WRITE = """
local at = 1
for _, key in ipairs(KEYS) do
  local kept, last = tonumber(ARGV[at]), at + 1 + tonumber(ARGV[at + 1])
  if kept == 0 then
    redis.call('XADD', key, '*', unpack(ARGV, at + 2, last))
  else
    for name = at + 2, last, 2 do redis.call('HINCRBY', key, ARGV[name], ARGV[name + 1]) end
    redis.call('EXPIRE', key, kept)
  end
  at = last + 1
end
"""


@lru_cache(maxsize=1)
def _write() -> Script:
    return counting().register_script(_WRITE)


class Ledger:
    """What is to be added to counters and to streams: all of it by one command, and all or nothing. The same ten commands in a pipeline take the client
    several times as long."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._args: list[str | bytes | int] = []

    def add(self, key: str, counts: Mapping[str, int], *, kept_seconds: int) -> None:
        """To the fields of a hash, which is kept so long from then on."""
        self._write_down(key, kept_seconds, counts)

    def append(self, key: str, entry: Mapping[str, str | bytes]) -> None:
        """To a stream."""
        self._write_down(key, 0, entry)

    def write(self) -> None:
        """Raises RedisError."""
        if self._keys:
            _write()(keys=self._keys, args=self._args, client=counting())

    def _write_down(self, key: str, kept_seconds: int, fields: Mapping[str, str | bytes | int]) -> None:
        if fields:
            self._keys.append(key)
            self._args += [kept_seconds, 2 * len(fields), *(part for field in fields.items() for part in field)]
