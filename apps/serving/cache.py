"""The answer cache: least recently used, bounded in bytes, in Redis, so that all web processes share it, with a first tier in each of them.

Exact: the key is a hash of the version, every parameter and the whole conversation, so that no other question's and no other
model's answer can come out of it. Only deterministic requests (temperature 0) are kept.
"""

import hashlib
import time

import orjson
from django.conf import settings
from prometheus_client import Gauge

from apps.monitoring import names
from apps.monitoring.recorder import cache_lookups_total
from apps.redis import Script, connection
from apps.serving.epoch import change as change_epoch
from apps.serving.near_cache import NearCache

cache_bytes = Gauge(names.CACHED_BYTES, "Bytes of cached answers", multiprocess_mode="mostrecent")

near = NearCache(settings.NEAR_CACHE_BYTES)

_KEYS = (names.CACHE_DATA, names.CACHE_USED, names.CACHE_BYTES)
_GET = Script("""
local value = redis.call('HGET', KEYS[1], ARGV[1])
if value then redis.call('ZADD', KEYS[2], 'XX', ARGV[2], ARGV[1]) end
return value
""")
_PUT = Script("""
local old = redis.call('HSTRLEN', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
local bytes = redis.call('INCRBY', KEYS[3], #ARGV[3] - old)
while bytes > tonumber(ARGV[4]) do
  local oldest = redis.call('ZPOPMIN', KEYS[2])[1]
  if not oldest then break end
  bytes = redis.call('DECRBY', KEYS[3], redis.call('HSTRLEN', KEYS[1], oldest))
  redis.call('HDEL', KEYS[1], oldest)
end
return bytes
""")


def key_of(*, version: str, messages: list[dict], parameters: dict) -> str:
    return hashlib.sha256(orjson.dumps([version, messages, parameters], option=orjson.OPT_SORT_KEYS)).hexdigest()


def get(key: str, epoch: str | None) -> dict | None:
    """`epoch`: in which the version was found."""
    value = near.get(key, epoch)
    if value is None and (value := _GET(_KEYS, [key, time.time()])):
        near.put(key, value, epoch)
    cache_lookups_total.labels("hit" if value else "miss").inc()
    return orjson.loads(value) if value else None


def put(key: str, answer: dict, epoch: str | None) -> None:
    text = orjson.dumps(answer).decode()
    near.put(key, text, epoch)
    cache_bytes.set(_PUT(_KEYS, [key, time.time(), text, settings.CACHE_BYTES]))


def clear_answers() -> None:
    """Another version was promoted: forget the answers in Redis, and with the epoch those in every process."""
    change_epoch()
    connection().unlink(*_KEYS)


def size() -> tuple[int, int]:
    """Entries and bytes."""
    entries, used = connection().hlen(names.CACHE_DATA), connection().get(names.CACHE_BYTES)
    return entries, int(used or 0)
