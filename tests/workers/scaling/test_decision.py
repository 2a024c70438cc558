"""The decision: enough, soon, not too much, no flapping."""

import pytest

from workers.scaling import Autoscaler, Observation, Policy, replicas_for


def seen(at: float, qps: float = 0.0, queue: float = 0.0, p99_ms: float | None = 20.0, ready: int = 1, starting: int = 0) -> Observation:
    return Observation(at, qps, queue, p99_ms, ready, starting)


def test_rate_and_queue_each_ask_for_what_they_need():
    known, unknown = Policy(most=100, capacity=50.0, load=0.5, drain_seconds=5), Policy(most=100, queue_per_replica=10)
    assert replicas_for(seen(0, qps=100), known)[0] == 4
    assert replicas_for(seen(0, qps=100, queue=2000), known)[0] == 10  # 100 a second, and 400 more for five seconds
    assert replicas_for(seen(0, qps=10, queue=95), unknown)[0] == 10
    assert replicas_for(seen(0), known)[0] == 0


def test_one_step_is_enough_and_what_starts_counts():
    scaler = Autoscaler(Policy(most=20, capacity=100.0, load=0.5))
    first = scaler.decide(seen(0, qps=500))
    assert (first.before, first.replicas) == (1, 10)
    assert "500.0" in first.reason
    assert not scaler.decide(seen(10, qps=500, ready=1, starting=9)).changes


def test_a_slow_p99_asks_for_half_as_many_again_once_it_lasts():
    scaler = Autoscaler(Policy(most=20, breach_seconds=10))
    assert not scaler.decide(seen(0, p99_ms=900, ready=4)).changes
    assert not scaler.decide(seen(9, p99_ms=900, ready=4)).changes
    decided = scaler.decide(seen(11, p99_ms=900, ready=4))
    assert decided.replicas == 6
    assert not scaler.decide(seen(15, p99_ms=900, ready=4, starting=2)).changes  # they are on their way
    assert not scaler.decide(seen(16, p99_ms=900, ready=6)).changes  # and get their time
    assert scaler.decide(seen(22, p99_ms=900, ready=6)).replicas == 9


def test_a_short_lull_keeps_the_replicas_and_a_long_one_gives_them_back():
    scaler = Autoscaler(Policy(most=20, capacity=100.0, load=0.5, hold_seconds=60, in_cooldown=30))
    count = 1
    kept = {}
    for at in range(300):
        qps = 500.0 if at < 60 or 90 <= at < 100 else 10.0
        count = scaler.decide(seen(at, qps=qps, ready=count)).replicas
        kept[at] = count
    assert kept[89] == 10  # the lull of 30 s was shorter than the hold
    assert kept[150] == 10  # a minute after the last peak not yet
    assert kept[175] == 1


def test_load_at_the_edge_of_a_step_does_not_flap():
    scaler = Autoscaler(Policy(most=10, capacity=100.0, load=0.7, hold_seconds=20, in_cooldown=5))
    count, changes = 2, 0
    for at in range(600):
        decided = scaler.decide(seen(at, qps=140 + (2 if at // 25 % 2 else -2), ready=count))
        changes += decided.changes
        count = decided.replicas
    assert count == 3
    assert changes == 1


def test_limits_hold():
    scaler = Autoscaler(Policy(least=2, most=3, capacity=1.0))
    assert scaler.decide(seen(0, qps=1000, ready=2)).replicas == 3
    with pytest.raises(ValueError, match="least"):
        Policy(least=3, most=2)
    with pytest.raises(ValueError, match="capacity"):
        Policy(capacity=0.0)
