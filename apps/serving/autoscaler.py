"""The local autoscaler: what the portal counts → `workers.scaling` → a number in a file that the supervisor follows.

On Kubernetes nothing follows the file: KEDA asks Prometheus for the same figures (deploy/kubernetes/), and this stays off.
"""

import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from apps.monitoring.buckets import read_by_version
from apps.monitoring.histogram import percentile
from apps.monitoring.rollups import queue_depth
from apps.monitoring.selectors import workers
from apps.serving.models import ScalingDecision
from workers.scaling import Autoscaler, Observation, Policy

RATE_SECONDS = 5  # over which answers are counted
P99_SECONDS = 15
BUSY_QUEUE = 8.0  # answers in flight a replica, from which on what it finishes is what it can
BUSY_LOOKS, FEWEST_LOOKS = 60, 5  # the best of the last busy looks counts: in the worst ones a model was being loaded
QUEUE_PER_REPLICA = 24.0
BREACH_SECONDS = 12.0


def is_on() -> bool:
    return bool(settings.REPLICAS_FILE) and settings.MAX_REPLICAS > 1


@dataclass
class LocalScaling:
    """One a beat process. What it remembers may be lost: the next look begins with the workers that are there."""

    capacity: float | None = None  # answers a second of one replica, learnt whenever all have enough to do
    _busy: deque[float] = field(default_factory=lambda: deque(maxlen=BUSY_LOOKS))
    wanted: int | None = None
    _before: tuple[float, float] | None = None  # when the queue was looked at, and how long it was
    _ended: float = 0.0  # answers a second that the engine has finished
    _scaler: Autoscaler | None = None
    _awaited: int | None = 1  # replicas that a step up's row waits for; at the start whatever an earlier process left

    def look(self, now: float | None = None) -> ScalingDecision | None:
        """One look at the counters. A row where something is to change, else None."""
        seen = self._observe(now or time.time())
        self._learn(seen)
        policy = Policy(
            least=1, most=settings.MAX_REPLICAS, capacity=self.capacity, queue_per_replica=QUEUE_PER_REPLICA, breach_seconds=BREACH_SECONDS,
            hold_seconds=settings.SCALE_IN_SECONDS, in_cooldown=settings.SCALE_IN_SECONDS / 2,
        )  # fmt: skip
        if self._scaler is None:
            self._scaler = Autoscaler(policy)
        self._scaler.policy = policy
        decision = self._scaler.decide(seen)
        if self._awaited is not None and seen.ready >= self._awaited:
            self._awaited = _note_ready(seen.ready)
        if not decision.changes:
            return None
        self.wanted = decision.replicas
        self._awaited = decision.replicas if decision.replicas > decision.before else None
        _write(decision.replicas)
        return ScalingDecision.objects.create(
            before=decision.before, replicas=decision.replicas, reason=decision.reason[:200], qps=seen.qps, queue=seen.queue, p99_ms=seen.p99_ms,
            capacity=self.capacity,
        )  # fmt: skip

    def _observe(self, now: float) -> Observation:
        second = int(now)
        recent = read_by_version(second - RATE_SECONDS, second - 1)[""]
        ended = (recent.requests - recent.cached) / RATE_SECONDS
        queue = float(queue_depth())
        # What was asked for is what ended, what the queue grew by, and what was refused.
        grown = max(0.0, queue - self._before[1]) / max(1.0, now - self._before[0]) if self._before else 0.0
        self._before = (now, queue)
        p99 = percentile(read_by_version(second - P99_SECONDS, second)[""].latency, 0.99)
        ready = max(1, len(workers("inference")))
        wanted = self.wanted if self.wanted is not None else ready
        self._ended = ended
        return Observation(now, ended + grown + recent.refused / RATE_SECONDS, queue, p99, ready, max(0, wanted - ready))

    def _learn(self, seen: Observation) -> None:
        if seen.queue >= BUSY_QUEUE * seen.ready and self._ended:
            self._busy.append(self._ended / seen.ready)
            if len(self._busy) >= FEWEST_LOOKS:
                self.capacity = max(self._busy)


def _write(replicas: int) -> None:
    path = Path(settings.REPLICAS_FILE)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(str(replicas))
    os.replace(temporary, path)


def _note_ready(ready: int) -> int | None:
    """How long the last step up took until its replicas answered. How many are still waited for, if any."""
    row = ScalingDecision.objects.first()
    if row is None or row.ready_at or row.replicas <= row.before:
        return None
    if ready < row.replicas:
        return row.replicas
    ScalingDecision.objects.filter(pk=row.pk, ready_at=None).update(ready_at=timezone.now())
    return None


_local = LocalScaling()


def scale() -> None:
    if is_on():
        _local.look()
