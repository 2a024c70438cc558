"""One observation per request: Prometheus for the fleet, per-second buckets in Redis for the portal's own charts."""

import logging
import time

import redis
from prometheus_client import Counter, Histogram

from apps.monitoring import names
from apps.monitoring.histogram import bin_of
from apps.redis import connection

log = logging.getLogger(__name__)

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 2, 5, 10, 30)
requests_total = Counter(names.REQUESTS_TOTAL, "Questions answered or refused", ["version", "route", "outcome"])
request_seconds = Histogram(names.REQUEST_SECONDS, "From the request's arrival to its last byte", ["version", "route"], buckets=BUCKETS)
first_token_seconds = Histogram(names.FIRST_TOKEN_SECONDS, "From the request's arrival to its first token", ["version"], buckets=BUCKETS)
tokens_total = Counter(names.TOKENS_TOTAL, "Tokens read and written", ["version", "kind"])
cache_lookups_total = Counter(names.CACHE_LOOKUPS_TOTAL, "Looks into the answer cache", ["outcome"])


def observe(
    *, version: str, route: str, latency_ms: float, outcome: str = "ok", cached: bool = False, prompt_tokens: int = 0,
    completion_tokens: int = 0, first_token_ms: float | None = None,
) -> None:  # fmt: skip
    """Count one request. `outcome`: ok, error, cancelled or busy; only `error` counts as a failure in the charts."""
    requests_total.labels(version, route, outcome).inc()
    request_seconds.labels(version, route).observe(latency_ms / 1000)
    if first_token_ms is not None:
        first_token_seconds.labels(version).observe(first_token_ms / 1000)
    tokens_total.labels(version, "prompt").inc(prompt_tokens)
    tokens_total.labels(version, "completion").inc(completion_tokens)
    second = int(time.time())
    key = names.SECOND.format(second=second)
    pipe = connection().pipeline(transaction=False)
    pipe.hincrby(key, f"{version}|n", 1)
    if outcome == "error":
        pipe.hincrby(key, f"{version}|e", 1)
    if cached:
        pipe.hincrby(key, f"{version}|c", 1)
    pipe.hincrby(key, f"{version}|{bin_of(latency_ms)}", 1)
    pipe.expire(key, names.SECONDS_KEPT)
    try:
        pipe.execute()
    except redis.RedisError as error:  # an answer is worth more than its dot in a chart
        log.warning("a request is missing from the charts: %s", error)
