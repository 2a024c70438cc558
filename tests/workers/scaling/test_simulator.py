"""The simulator against queueing theory and against sums that anybody can do by hand."""

import numpy as np
import pytest

from workers.scaling import Autoscaler, Policy
from workers.scaling.simulator import Fleet, simulate

FLEET = Fleet(capacity=100.0, start_seconds=5.0, service_seconds=0.1, queue_limit=10_000)


def test_under_its_capacity_a_fleet_serves_all_without_waiting():
    run = simulate(lambda at: 300.0, 60, FLEET, replicas=5, look=lambda seen: 5)
    assert sum(m.refused for m in run.moments) == 0
    assert np.mean([m.served for m in run.moments]) == pytest.approx(300, rel=0.02)
    assert run.moments[-1].p99_ms == pytest.approx(100, abs=60)


def test_a_backlog_grows_by_what_is_missing_and_goes_by_what_is_added():
    """Until the new replicas answer, (500 − 200) · 5 s wait; then (800 − 500) a second go."""
    run = simulate(lambda at: 500.0, 30, FLEET, replicas=2, look=lambda seen: 8)
    at_start = next(m for m in run.moments if m.at >= 5.9)
    assert at_start.queue == pytest.approx(1800, rel=0.1)  # a second passes before the first look
    assert run.seconds_until(6, lambda m: m.queue < 50) == pytest.approx(6, abs=1.5)


def test_latency_is_the_wait_of_littles_law():
    """L = λ W with a backlog that neither grows nor shrinks: 1,000 wait, 500 are served a second, so 2 s."""
    run = simulate(lambda at: 1000.0 if at < 2 else 500.0, 40, FLEET, replicas=5, look=lambda seen: 5)
    last = run.moments[-1]
    assert last.queue == pytest.approx(1000, rel=0.15)
    assert last.p99_ms == pytest.approx(last.queue / 500 * 1000 + 100, rel=0.1)


def test_more_than_the_queue_holds_is_refused():
    small = Fleet(100.0, 5.0, 0.1, queue_limit=50)
    run = simulate(lambda at: 300.0, 20, small, replicas=1, look=lambda seen: 1)
    assert sum(m.refused for m in run.moments[5:]) / 15 == pytest.approx(200, rel=0.1)
    assert max(m.queue for m in run.moments) <= 50


def test_our_policy_follows_five_times_the_load_within_half_a_minute():
    scaler = Autoscaler(Policy(least=1, most=100, capacity=100.0))
    run = simulate(lambda at: 1000.0 if at < 60 else 5000.0, 180, FLEET, 15, look=lambda seen: scaler.decide(seen).replicas)
    took = run.seconds_until(60, lambda m: m.ready * 100 >= 5000 and m.p99_ms < 500)
    assert took is not None
    assert took <= 30
