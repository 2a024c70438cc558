"""What happened in one second, as Redis has it: hashes of `version|what` → count, and gauges of all versions together.

`what`: n (requests), e (failed), c (from the cache), b (refused, as there was too much to do; not among n), a number (a bin of the latency's histogram),
f and a number (of the first token's), s (steps of engines), t (tokens that they wrote), p (tokens that they read), d and a phase's name (µs that requests
were in it).
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from apps.monitoring import names
from apps.redis import Ledger, connection

GAUGES = ("queue_depth", "replicas", "memory_bytes")  # the last one seen counts
COUNTS = {"n": "requests", "e": "errors", "c": "cached", "b": "refused", "s": "steps", "t": "written_tokens", "p": "read_tokens"}
PHASES = ("turn", "database", "cache", "queue", "load", "prefill", "decode", "shared", "deliver")  # of a request, about as they follow each other
PHASE = "d"
ALL = ""  # of versions: all of them together


def _histogram() -> dict[int, int]:
    return defaultdict(int)


def _durations() -> dict[str, int]:
    return defaultdict(int)


@dataclass
class Bucket:
    requests: int = 0
    errors: int = 0
    cached: int = 0
    refused: int = 0
    steps: int = 0
    written_tokens: int = 0
    read_tokens: int = 0
    latency: dict[int, int] = field(default_factory=_histogram)
    first_token: dict[int, int] = field(default_factory=_histogram)
    phases: dict[str, int] = field(default_factory=_durations)  # µs
    queue_depth: float | None = None
    replicas: float | None = None
    memory_bytes: float | None = None

    def add(self, other: "Bucket") -> None:
        for name in COUNTS.values():
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.latency, other.latency), (self.first_token, other.first_token)):
            for number, count in theirs.items():
                mine[number] += count
        for name, microseconds in other.phases.items():
            self.phases[name] += microseconds
        for name in GAUGES:
            if (value := getattr(other, name)) is not None:
                setattr(self, name, value)


def count(version: str, counts: Mapping[str, int], *, at: float | None = None) -> None:
    """Add to the bucket of this second. Raises RedisError."""
    adding = Ledger()
    key = names.SECOND.format(second=int(at or time.time()))
    adding.add(key, {f"{version}|{what}": number for what, number in counts.items()}, kept_seconds=names.SECONDS_KEPT)
    adding.write()


def set_gauges(second: int, values: Mapping[str, float]) -> None:
    key = names.SECOND.format(second=second)
    pipe = connection().pipeline(transaction=False)
    pipe.hset(key, mapping={f"gauge|{name}": value for name, value in values.items()})
    pipe.expire(key, names.SECONDS_KEPT)
    pipe.execute()


def read_seconds(first: int, last: int, version: str | None = None) -> dict[int, Bucket]:
    """Buckets of the seconds first … last that saw anything; of one version, or of all together."""
    rows = _rows(first, last)
    return {second: _bucket(row, version) for second, row in zip(range(first, last + 1), rows, strict=True) if row}


def read_by_version(first: int, last: int) -> dict[str, Bucket]:
    """One bucket a version over the whole span; the key "" holds all versions and the gauges."""
    totals: dict[str, Bucket] = {ALL: Bucket()}
    for row in _rows(first, last):
        for version in {name.rsplit("|", 1)[0] for name in row} - {"gauge", ALL}:
            totals.setdefault(version, Bucket()).add(_bucket(row, version))
        totals[ALL].add(_bucket(row, None))
    return totals


def _rows(first: int, last: int) -> list[dict[str, str]]:
    pipe = connection().pipeline(transaction=False)
    for second in range(first, last + 1):
        pipe.hgetall(names.SECOND.format(second=second))
    return pipe.execute()


def _bucket(row: dict[str, str], version: str | None) -> Bucket:
    bucket = Bucket()
    for name, value in row.items():
        owner, what = name.rsplit("|", 1)
        if owner == "gauge":
            setattr(bucket, what, float(value))
        elif version is not None and owner != version:
            continue
        elif what in COUNTS:
            setattr(bucket, COUNTS[what], getattr(bucket, COUNTS[what]) + int(value))
        elif what[0] == "f":
            bucket.first_token[int(what[1:])] += int(value)
        elif what[0] == PHASE:
            bucket.phases[what[1:]] += int(value)
        else:
            bucket.latency[int(what)] += int(value)
    return bucket
