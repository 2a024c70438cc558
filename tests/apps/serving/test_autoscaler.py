"""What the portal counts becomes a number of inference workers, written where the supervisor reads it."""

import time

import pytest

from apps.monitoring import names, recorder
from apps.monitoring.presence import be_present
from apps.monitoring.tally import tally
from apps.redis import connection
from apps.serving import autoscaler
from apps.serving.autoscaler import LocalScaling
from apps.serving.models import ScalingDecision

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def four_at_most(settings, tmp_path):
    settings.REPLICAS_FILE, settings.MAX_REPLICAS = str(tmp_path / "replicas"), 4


@pytest.fixture
def clock(monkeypatch):
    """Counters are written and read at a second of the test's own."""
    at = [NOW]
    monkeypatch.setattr(time, "time", lambda: at[0])
    return at


def written(settings) -> int:
    with open(settings.REPLICAS_FILE) as file:
        return int(file.read())


def answered(count: int, *, latency_ms: float = 50.0, cached: bool = False) -> None:
    for _ in range(count):
        recorder.observe(version="V", route="generate", latency_ms=latency_ms, cached=cached)
    tally.write()


def in_flight(count: int, now: float) -> None:
    connection().delete(names.IN_FLIGHT)
    connection().zadd(names.IN_FLIGHT, {f"answer-{number}": now + 60 for number in range(count)})


def beating(count: int) -> None:
    for number in range(count):
        be_present("inference", f"inference@here-{number}", seconds=60)


def test_a_long_queue_starts_more_workers_and_says_why(db, clock, settings):
    beating(1)
    in_flight(70, clock[0])
    row = LocalScaling().look(clock[0])
    assert (row.before, row.replicas, written(settings)) == (1, 3, 3)
    assert "70 answers in flight" in row.reason


def test_what_a_worker_can_do_is_learnt_when_it_is_busy_and_then_the_rate_decides(db, clock, settings):
    beating(1)
    scaling = LocalScaling()
    for _ in range(12):
        answered(20)
        clock[0] += 1
        in_flight(10, clock[0])
        scaling.look(clock[0])
    assert scaling.capacity == pytest.approx(20, rel=0.25)
    assert written(settings) == 2  # 20 a second are more than 0.7 of what one can do


def test_answers_from_the_cache_are_no_load(db, clock):
    beating(1)
    scaling = LocalScaling(capacity=10.0)
    for _ in range(6):
        answered(100, cached=True, latency_ms=2)
        clock[0] += 1
    assert scaling.look(clock[0]) is None


def test_a_lasting_slow_p99_starts_another_and_calm_gives_it_back(db, clock, settings):
    settings.SCALE_IN_SECONDS = 20.0
    beating(1)
    scaling = LocalScaling()
    for _ in range(15):
        answered(2, latency_ms=900)
        clock[0] += 1
        scaling.look(clock[0])
    grown = ScalingDecision.objects.get()
    assert grown.replicas == 2
    assert "P99" in grown.reason
    beating(2)
    clock[0] += 5
    scaling.look(clock[0])
    assert ScalingDecision.objects.get().ready_at is not None
    for _ in range(60):
        clock[0] += 1
        scaling.look(clock[0])
    assert written(settings) == 1


def test_where_nobody_follows_it_nothing_is_decided(db, clock, settings):
    settings.REPLICAS_FILE = ""
    in_flight(100, clock[0])
    autoscaler.scale()
    assert not ScalingDecision.objects.exists()


def test_decisions_can_be_read_over_rest_and_on_the_page(as_viewer, viewer, client):
    ScalingDecision.objects.create(before=1, replicas=2, reason="70 answers in flight, at most 24 a replica", qps=3.0, queue=70)
    found = as_viewer.get("/api/v1/scaling-decisions/").json()["results"]
    assert found[0]["replicas"] == 2
    assert found[0]["ready_seconds"] is None
    client.force_login(viewer)
    assert "70 answers in flight" in client.get("/monitoring/").content.decode()


def test_a_quiet_second_costs_the_database_nothing(db, clock, django_assert_num_queries):
    beating(2)
    ScalingDecision.objects.create(before=1, replicas=2, reason="no load", qps=0, queue=0)
    scaling = LocalScaling()
    scaling.look(clock[0])
    assert ScalingDecision.objects.get().ready_at  # what an earlier process began is seen to its end
    for _ in range(5):
        clock[0] += 1
        with django_assert_num_queries(0):
            scaling.look(clock[0])
