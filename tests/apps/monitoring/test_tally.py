"""Phases are summed where requests are answered, and reach the charts' buckets a moment later."""

import time

import pytest

from apps.monitoring import buckets, recorder
from apps.monitoring.tally import Tally

START = 1_800_000_000


@pytest.fixture
def tally(monkeypatch) -> Tally:
    made = Tally()
    monkeypatch.setattr(recorder, "tally", made)
    return made


def tell(version: str, **phases: float) -> None:
    recorder.observe_phases(version=version, route="chat", tenant="user", phases=((name, seconds) for name, seconds in phases.items()))


def test_phases_are_counted_in_the_second_in_which_they_were_told_whenever_they_are_written(tally, monkeypatch, redis_server):
    for second, decode in ((START, 0.25), (START, 0.5), (START + 1, 0.125)):
        monkeypatch.setattr(time, "time", lambda second=second: second + 0.9)
        tell("v", queue=0.001, decode=decode)
    monkeypatch.setattr(time, "time", lambda: START + 60.0)
    tally.write()
    tally.write()  # nothing is left: nothing is counted twice

    found = buckets.read_seconds(START, START + 60, "v")
    assert {second: dict(bucket.phases) for second, bucket in found.items()} == {
        START: {"queue": 2000, "decode": 750_000},
        START + 1: {"queue": 1000, "decode": 125_000},
    }


def test_a_request_that_was_refused_before_a_version_was_chosen_is_in_no_chart(tally, redis_server):
    tell("", database=0.1)
    tally.write()
    now = int(time.time())
    assert not buckets.read_by_version(now - 5, now)[""].phases


def test_nobody_has_to_ask_for_the_writing(tally, redis_server):
    tell("w", cache=0.004)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = int(time.time())
        if (found := buckets.read_by_version(now - 40, now).get("w")) and found.phases:
            assert found.phases == {"cache": 4000}
            return
        time.sleep(0.1)
    pytest.fail("the phases were never written")
