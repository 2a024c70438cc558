"""What the engines of this process have done: counted for Prometheus, and for the charts a second at a time."""

import logging
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge
from redis import RedisError

from apps.monitoring import buckets, names

if TYPE_CHECKING:  # jobs and beat read this file too, and need no engine
    from workers.engine.engine import EngineStats

log = logging.getLogger(__name__)

running = Gauge(names.ENGINE_RUNNING, "Sequences in the engine", multiprocess_mode="livesum")
waiting = Gauge(names.ENGINE_WAITING, "Sequences that wait for a slot", multiprocess_mode="livesum")
slots = Gauge(names.ENGINE_SLOTS, "Sequences that engines can hold at once", multiprocess_mode="livesum")
cache_bytes = Gauge(names.ENGINE_CACHE_BYTES, "Keys and values: what they take, and what they may", ["kind"], multiprocess_mode="livesum")
steps_total = Counter(names.ENGINE_STEPS_TOTAL, "Forwards of engines", ["version"])
tokens_total = Counter(names.ENGINE_TOKENS_TOTAL, "Tokens that engines read, wrote, and need not read again", ["version", "kind"])
preemptions_total = Counter(names.ENGINE_PREEMPTIONS_TOTAL, "Sequences that left their slot for want of memory, and went on later", ["version"])


class EngineCounts:
    """Remembers how far each engine was when it was last looked at. Not for several threads at once."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, ...]] = {}

    def count(self, version: str, stats: "EngineStats") -> None:
        """What the engine of the version has done since the last look."""
        now = (stats.steps, stats.prompt_tokens, stats.completion_tokens, stats.reused_tokens, stats.preemptions)
        before = self._before.get(version, (0,) * len(now))
        self._before[version] = now
        steps, read, written, reused, preempted = (new - old for new, old in zip(now, before, strict=True))
        if not (steps or read or written or reused):
            return
        steps_total.labels(version).inc(steps)
        preemptions_total.labels(version).inc(preempted)
        for kind, number in (("prompt", read), ("completion", written), ("reused", reused)):
            tokens_total.labels(version, kind).inc(number)
        try:
            buckets.count(version, {"s": steps, "p": read, "t": written})
        except RedisError as error:
            log.warning("%d tokens are missing from the charts: %s", written, error)

    def forget(self, version: str) -> None:
        """Its engine was closed: another of the same version begins at nothing."""
        self._before.pop(version, None)

    @staticmethod
    def show(all_stats: "list[EngineStats]") -> None:
        running.set(sum(stats.running for stats in all_stats))
        waiting.set(sum(stats.waiting for stats in all_stats))
        slots.set(sum(stats.slots for stats in all_stats))
        cache_bytes.labels("used").set(sum(stats.cache_used_bytes for stats in all_stats))
        cache_bytes.labels("total").set(sum(stats.cache_total_bytes for stats in all_stats))
