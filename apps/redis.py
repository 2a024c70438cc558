"""A process's connections to Redis. Every call has a timeout; what may be done twice is tried again after one."""

import hashlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import redis
from django.conf import settings
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError
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


class Script:
    """What Redis is to do in one go, in Lua, as `counting` does it. Over connections of its own: the client's pool and what it observes of each command
    take as long as the command itself, and an answer from the cache is one command."""

    def __init__(self, lua: str):
        self._lua, self._sha = lua, hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], args: Sequence[str | bytes | float]) -> Any:
        """Raises RedisError."""
        try:
            return _done("EVALSHA", self._sha, len(keys), *keys, *args)
        except NoScriptError:  # a Redis that was started anew, or has never heard it
            return _done("EVAL", self._lua, len(keys), *keys, *args)


_idle: deque[redis.Connection] = deque()  # the one that was used last is the next: the others may rest
os.register_at_fork(after_in_child=_idle.clear)


def _done(*command: str | bytes | float) -> Any:
    try:
        line = _idle.pop()
    except IndexError:
        line = counting().connection_pool.make_connection()

    def ask() -> Any:
        line.send_command(*command)
        return line.read_response()

    try:
        return line.retry.call_with_retry(ask, lambda _error: line.disconnect())
    finally:
        _idle.append(line)


# `write(key, at)`: what a ledger says, from KEYS[key] and ARGV[at] on. KEYS: hashes and streams. ARGV, for each of them: how many seconds a hash is kept
# (0: it is a stream), how many names and values, and these.
WRITE = """
local function write(key, at)
  for number = key, #KEYS do
    local kept, last = tonumber(ARGV[at]), at + 1 + tonumber(ARGV[at + 1])
    if kept == 0 then
      redis.call('XADD', KEYS[number], '*', unpack(ARGV, at + 2, last))
    else
      for name = at + 2, last, 2 do redis.call('HINCRBY', KEYS[number], ARGV[name], ARGV[name + 1]) end
      redis.call('EXPIRE', KEYS[number], kept)
    end
    at = last + 1
  end
end
"""
_write = Script(f"{WRITE} write(1, 1)")


class Ledger:
    """What is to be added to counters and to streams: all of it by one command, and all or nothing. The same ten commands in a pipeline take the client
    several times as long. `keys` and `args` are those of `WRITE`, for a script that looks before it writes."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.args: list[str | bytes | int] = []

    def add(self, key: str, counts: Mapping[str, int], *, kept_seconds: int) -> None:
        """To the fields of a hash, which is kept so long from then on."""
        self._write_down(key, kept_seconds, counts)

    def append(self, key: str, entry: Mapping[str, str | bytes]) -> None:
        """To a stream."""
        self._write_down(key, 0, entry)

    def write(self) -> None:
        """Raises RedisError."""
        if self.keys:
            _write(self.keys, self.args)

    def _write_down(self, key: str, kept_seconds: int, fields: Mapping[str, str | bytes | int]) -> None:
        if fields:
            self.keys.append(key)
            self.args += [kept_seconds, 2 * len(fields), *(part for field in fields.items() for part in field)]
