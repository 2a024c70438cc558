"""The decision: what was seen in the last seconds → how many replicas there should be, and why."""

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Observation:
    """What is known at one moment. Answers from the cache are not work, and are in none of the figures but the P99."""

    at: float  # seconds, on any clock that only goes forward
    qps: float  # answers asked for in a second, over the last few seconds
    queue: float  # answers asked for and not finished
    p99_ms: float | None  # None where nothing was asked
    ready: int  # replicas that answer
    starting: int = 0  # replicas that were asked for and do not answer yet


@dataclass(frozen=True)
class Policy:
    """Limits and aims. `capacity`: answers a second of one replica, measured; None where it is not known yet."""

    least: int = 1
    most: int = 1
    capacity: float | None = None
    load: float = 0.7  # of its capacity that a replica should carry, so that a burst does not reach the P99
    queue_per_replica: float = 16.0  # answers in flight for one replica, where its capacity is not known
    drain_seconds: float = 5.0  # a backlog is to be gone in this time, where it is
    p99_limit_ms: float = 500.0
    breach_seconds: float = 10.0  # a P99 above its limit for so long asks for half as many again, at least one
    out_cooldown: float = 3.0  # between two steps up
    in_cooldown: float = 30.0  # between any step and a step down
    hold_seconds: float = 60.0  # the most that was wanted in this time is kept (Kubernetes calls it the stabilisation window)
    hysteresis: float = 0.85  # replicas go only where those that stay would carry less than this share of their aim

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"least ({self.least}) must lie between 0 and most ({self.most})")
        if self.capacity is not None and self.capacity <= 0:
            raise ValueError(f"capacity must be positive, not {self.capacity}")


@dataclass(frozen=True)
class Decision:
    replicas: int
    before: int
    reason: str

    @property
    def changes(self) -> bool:
        return self.replicas != self.before


def replicas_for(seen: Observation, policy: Policy, load: float | None = None) -> tuple[int, str]:
    """Replicas that rate and queue ask for, without limits, and what asks for them. `load` replaces the policy's."""
    wanted, reason = 1 if seen.qps or seen.queue else 0, "no load"
    if policy.capacity is None:
        by_queue = math.ceil(seen.queue / policy.queue_per_replica)
        if by_queue > wanted:
            wanted, reason = by_queue, f"{seen.queue:.0f} answers in flight, at most {policy.queue_per_replica:.0f} a replica"
        return wanted, reason
    each = policy.capacity * (load or policy.load)
    by_rate = math.ceil(seen.qps / each - 1e-9)
    if by_rate > wanted:
        wanted, reason = by_rate, f"{seen.qps:.1f} answers asked for a second, {each:.1f} a replica"
    by_backlog = math.ceil((seen.qps + seen.queue / policy.drain_seconds) / policy.capacity - 1e-9)
    if by_backlog > wanted:
        wanted, reason = by_backlog, f"{seen.qps:.1f} answers asked for a second and {seen.queue:.0f} in flight, {policy.capacity:.1f} a replica"
    return wanted, reason


@dataclass
class Autoscaler:
    """Remembers what was wanted and when something changed, so that replicas neither flap nor start twice."""

    policy: Policy
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _changed: float = -math.inf
    _grown: float = -math.inf
    _breach: float | None = None  # since when the P99 is above its limit

    def decide(self, seen: Observation) -> Decision:
        """Call it every second or few. `Decision.replicas` counts those that are starting, too."""
        policy, now = self.policy, seen.at
        before = seen.ready + seen.starting
        wanted, reason = replicas_for(seen, policy)
        slow = self._too_slow_for(seen)
        if slow >= policy.breach_seconds and not seen.starting:
            more = max(before + 1, math.ceil(before * 1.5))
            if more > wanted:
                wanted, reason = more, f"P99 {seen.p99_ms:.0f} ms, above {policy.p99_limit_ms:.0f} ms for {slow:.0f} s"
        wanted = min(max(wanted, policy.least), policy.most)
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - policy.hold_seconds:
            self._wanted.popleft()
        if wanted > before:
            if now - self._grown < policy.out_cooldown:
                return Decision(before, before, "a step up was made just now")
            self._grown = self._changed = now
            self._breach = now if self._breach is not None else None  # the new ones get their time before more are asked for
            return Decision(wanted, before, reason)
        if wanted < before:
            return self._fewer(seen, before)
        return Decision(before, before, reason)

    def _too_slow_for(self, seen: Observation) -> float:
        """Seconds for which the P99 has been above its limit."""
        if seen.p99_ms is None or seen.p99_ms <= self.policy.p99_limit_ms:
            self._breach = None
            return 0.0
        if self._breach is None:
            self._breach = seen.at
        return seen.at - self._breach

    def _fewer(self, seen: Observation, before: int) -> Decision:
        policy = self.policy
        held = max(count for _, count in self._wanted)
        careful, _ = replicas_for(seen, policy, policy.load * policy.hysteresis)
        staying = min(max(held, careful, policy.least), before)
        if staying == before:
            return Decision(before, before, "more were wanted within the last minute")
        if seen.at - self._changed < policy.in_cooldown or self._wanted[0][0] > seen.at - 0.9 * policy.hold_seconds:
            return Decision(before, before, "too soon after the last change")
        self._changed = seen.at
        return Decision(staying, before, f"{seen.qps:.1f} answers a second and {seen.queue:.0f} in flight need no more")
