"""A fleet under a load, second by second: one queue, replicas that take time to start, a policy that looks on.

A replica works `capacity` answers a second off the queue (continuous batching: the rate is what is measured, not one answer's time),
and an answer that need not wait takes `service_seconds`. The queue is bounded; what does not fit is refused.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from workers.scaling.decision import Observation

TICK = 0.02  # seconds
WINDOW = 5.0  # over which rate and P99 are seen, as in the portal
Look = Callable[[Observation], int]  # what is seen → replicas wanted


@dataclass(frozen=True)
class Fleet:
    """All measured: `capacity` answers a second of one replica, `start_seconds` from the decision until it answers."""

    capacity: float
    start_seconds: float
    service_seconds: float
    queue_limit: float  # answers in flight that one replica's share allows, times the replicas
    look_every: float = 1.0  # seconds between two decisions


@dataclass(frozen=True)
class Moment:
    at: float
    qps: float
    served: float
    refused: float
    queue: float
    p99_ms: float | None
    ready: int
    wanted: int


@dataclass
class Run:
    moments: list[Moment] = field(default_factory=list)  # one a second

    def seconds_until(self, since: float, holds: Callable[[Moment], bool]) -> float | None:
        """From `since` until `holds` is true and stays so to the end; None where it never is."""
        last_bad = max((m.at for m in self.moments if m.at >= since and not holds(m)), default=None)
        if last_bad is None:
            return 0.0
        return None if last_bad >= self.moments[-1].at else last_bad + 1 - since


class _Window:
    """Latencies of the answers that ended within the last WINDOW seconds."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, float, float]] = deque()  # when, seconds, how many

    def add(self, at: float, seconds: float, count: float) -> None:
        self._ended.append((at, seconds, count))

    def p99_ms(self, now: float) -> float | None:
        while self._ended and self._ended[0][0] < now - WINDOW:
            self._ended.popleft()
        if not self._ended:
            return None
        seconds, counts = np.array([(s, c) for _, s, c in self._ended]).T
        order = seconds.argsort()
        share = counts[order].cumsum() / counts.sum()
        return float(seconds[order][np.searchsorted(share, 0.99)] * 1000)


def simulate(load: Callable[[float], float], seconds: float, fleet: Fleet, replicas: int, look: Look, seed: int = 0) -> Run:
    """`load`: second → answers asked for a second (the mean of a Poisson process). `replicas` answer from the beginning."""
    random = np.random.default_rng(seed)
    run, window = Run(), _Window()
    ready, starting = replicas, deque[float]()  # when each one that starts will answer
    waiting: deque[list[float]] = deque()  # [asked at, how many], oldest first
    queue, rates, second = 0.0, deque[float](), [0.0, 0.0, 0.0]
    ticks_a_second, look_ticks = round(1 / TICK), round(fleet.look_every / TICK)
    for tick in range(round(seconds / TICK)):
        now = tick * TICK
        while starting and starting[0] <= now:
            starting.popleft()
            ready += 1
        asked = float(random.poisson(load(now) * TICK))
        taken = min(asked, max(0.0, fleet.queue_limit * ready - queue))
        if taken:
            waiting.append([now, taken])
            queue += taken
        served = 0.0
        room = ready * fleet.capacity * TICK
        while waiting and room > 0:
            count = min(room, waiting[0][1])
            window.add(now, now - waiting[0][0] + fleet.service_seconds, count)
            waiting[0][1] -= count
            room -= count
            served += count
            if waiting[0][1] <= 1e-9:
                waiting.popleft()
        queue = max(0.0, queue - served)
        rates.append(asked)
        if len(rates) > WINDOW / TICK:
            rates.popleft()
        second = [a + b for a, b in zip(second, (asked, served, asked - taken), strict=True)]
        if tick % look_ticks == look_ticks - 1:
            seen = Observation(now, sum(rates) / (len(rates) * TICK), queue, window.p99_ms(now), ready, len(starting))
            wanted = look(seen)
            while ready + len(starting) < wanted:
                starting.append(now + fleet.start_seconds)
            while ready + len(starting) > max(wanted, 0):
                if starting:
                    starting.pop()
                else:
                    ready -= 1  # it ends what it has: the queue is shared
        if tick % ticks_a_second == ticks_a_second - 1:
            run.moments.append(Moment(now, second[0], second[1], second[2], queue, window.p99_ms(now), ready, ready + len(starting)))
            second = [0.0, 0.0, 0.0]
    return run
