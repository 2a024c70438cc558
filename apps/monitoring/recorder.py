"""One observation per request: Prometheus for the fleet, per-second buckets in Redis for the portal's own charts."""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

from prometheus_client import Counter, Histogram

from apps.monitoring import buckets, names
from apps.monitoring.histogram import bin_of
from apps.monitoring.tally import tally

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 2, 5, 10, 30)
PHASE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BUSY, INVALID = "busy", "invalid"  # refused: as there was too much to do; as the asker's mistake
Metric = TypeVar("Metric", Counter, Histogram)
WHOSE = ["version", "route", "tenant"]  # tenant: token, user, guest, or none outside of a request
requests_total = Counter(names.REQUESTS_TOTAL, "Questions answered or refused", [*WHOSE, "outcome"])
request_seconds = Histogram(names.REQUEST_SECONDS, "From the request's arrival to its last byte", WHOSE, buckets=BUCKETS)
first_token_seconds = Histogram(names.FIRST_TOKEN_SECONDS, "From the request's arrival to its first token", WHOSE, buckets=BUCKETS)
phase_seconds = Histogram(
    names.PHASE_SECONDS,
    "One phase of a request: turn, queue, load, prefill, decode, deliver, cache, database or shared",
    [*WHOSE, "phase"],
    buckets=PHASE_BUCKETS,
)
tokens_total = Counter(names.TOKENS_TOTAL, "Tokens read and written", ["version", "kind"])
cache_lookups_total = Counter(names.CACHE_LOOKUPS_TOTAL, "Looks into the answer cache", ["outcome"])


@lru_cache(maxsize=4096)
def _of(metric: Metric, *labels: str) -> Metric:
    """What `labels` joins, checks and locks for at each call."""
    return metric.labels(*labels)


def observe(
    *, version: str, route: str, latency_ms: float, tenant: str = "none", outcome: str = "ok", cached: bool = False, prompt_tokens: int = 0,
    completion_tokens: int = 0, first_token_ms: float | None = None,
) -> None:  # fmt: skip
    """Count one request. `outcome`: ok, error, cancelled, busy or invalid; only `error` counts as a failure in the charts, and one that was refused,
    `busy` or `invalid`, is no request there: the one is counted apart, the other, like what is refused before a version is asked, not at all. The
    charts hear of it within a second."""
    if outcome == BUSY:
        refuse(version=version, route=route, tenant=tenant)
        return
    _of(requests_total, version, route, tenant, outcome).inc()
    if outcome == INVALID:
        return
    _of(request_seconds, version, route, tenant).observe(latency_ms / 1000)
    _of(tokens_total, version, "prompt").inc(prompt_tokens)
    _of(tokens_total, version, "completion").inc(completion_tokens)
    counts = {"n": 1, str(bin_of(latency_ms)): 1}
    if first_token_ms is not None:
        _of(first_token_seconds, version, route, tenant).observe(first_token_ms / 1000)
        counts[f"f{bin_of(first_token_ms)}"] = 1
    if outcome == "error":
        counts["e"] = 1
    if cached:
        counts["c"] = 1
    tally.add(version, counts)


def refuse(*, version: str, route: str, tenant: str) -> None:
    """Count a request that was told to come back later. Its time is not that of an answer. `version`: empty where nobody knows yet."""
    _of(requests_total, version, route, tenant, BUSY).inc()
    tally.add(version, {"b": 1})


def observe_phases(*, version: str, route: str, tenant: str, phases: Iterable[tuple[str, float]]) -> None:
    """Of one request that `version` was asked. `phases`: names and seconds."""
    spent: dict[str, int] = defaultdict(int)
    for name, seconds in phases:
        _of(phase_seconds, version, route, tenant, name).observe(seconds)
        spent[f"{buckets.PHASE}{name}"] += round(seconds * 1e6)
    if version:  # else it was refused before anybody knew which
        tally.add(version, spent)
