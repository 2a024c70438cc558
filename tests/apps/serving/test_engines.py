"""Several versions in one inference worker: what is in memory, what is lent, and what is there before it is asked."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
from django.db import connections

from apps.accounts.problems import Conflict
from apps.experiments import services as experiments
from apps.monitoring.presence import be_present
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from apps.serving import warming
from tests.apps import making
from workers.engine import EngineStats
from workers.tasks.engines import Engines, NeverFits, NoRoom
from workers.tasks.following import load_first, look

pytestmark = pytest.mark.django_db(transaction=True)


class Opened:
    """An engine that only remembers whether it is open, and takes 100 bytes for keys and values."""

    def __init__(self, log: list[str], name: str):
        self.log, self.name, self.is_open = log, name, True
        log.append(f"+{name}")

    def stats(self):
        return replace(EngineStats(*[0] * len(fields(EngineStats))), cache_total_bytes=100)

    def close(self) -> None:
        self.is_open = False
        self.log.append(f"-{self.name}")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def holds(log):
    """A worker's engines, for so many versions of a thousand bytes and their keys and values."""
    return lambda versions, most=9: Engines(most, versions * 1100, lambda version: Opened(log, version.name))


def version(name: str, state: str = "candidate", artifact_bytes: int = 1000) -> ModelVersion:
    made = making.version(name, state=state)
    ModelVersion.objects.filter(pk=made.pk).update(artifact_bytes=artifact_bytes)
    return made


@pytest.mark.parametrize("bound", ["bytes", "number"])
def test_the_longest_unasked_is_closed_for_another_and_those_wanted_last(holds, log, bound):
    a, b, c, d = (version(name) for name in "abcd")
    engines = holds(3) if bound == "bytes" else holds(100, most=3)
    engines.prepare([a.pk])
    for one in (b, c, b, d):
        with engines.lent(one.pk):
            pass

    assert log == ["+a", "+b", "+c", "-c", "+d"]


def test_an_engine_that_answers_is_never_closed_and_who_needs_its_memory_waits(holds, log):
    a, b = version("a"), version("b")
    engines = holds(1)
    with ThreadPoolExecutor(1) as pool:
        with engines.lent(a.pk) as busy, engines.lent(a.pk):
            with pytest.raises(NoRoom, match="as long as other versions answer"), engines.lent(b.pk, time.monotonic() + 0.05):
                pass

            def ask():
                try:
                    with engines.lent(b.pk, time.monotonic() + 20) as engine:
                        return engine.name
                finally:
                    connections.close_all()

            waiting = pool.submit(ask)
            time.sleep(0.1)
            assert busy.is_open
            assert not waiting.done()
        assert waiting.result(20) == "b"
    assert log == ["+a", "-a", "+b"]


def test_a_version_that_many_ask_at_once_is_loaded_once(holds, log):
    a = version("a")
    engines = holds(2)
    together = threading.Barrier(8)

    def ask(_):
        try:
            together.wait(10)
            with engines.lent(a.pk) as engine:
                return engine
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert log == ["+a"]


def test_a_version_that_cannot_be_loaded_says_why_each_time_and_leaves_no_trace(holds):
    huge = version("huge", artifact_bytes=10_000)
    engines = holds(2)
    for _ in range(2):
        with pytest.raises(NeverFits, match="huge needs 10,000 bytes"), engines.lent(huge.pk):
            pass
    assert engines._taken_bytes() == 0


def until(condition):
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_one_that_joins_others_loads_what_is_live_before_it_takes_a_question(holds, log, redis_server):
    version("asked", state="live")
    load_first(holds(3))
    assert log == []  # nobody else answers: who asks it waits as long either way, and hears that a worker is there

    be_present("inference", "another", seconds=60)
    load_first(holds(3))
    assert log == ["+asked"]


@pytest.fixture
def worker(holds):
    """The thread in which an inference worker follows what is wanted."""
    engines, stop = holds(3), threading.Event()

    def run():
        while not stop.wait(0.02):
            look(engines, "worker-1")
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    until(warming._followers)  # nobody waits for a worker that has not said that it is there
    yield engines
    stop.set()
    thread.join()


def test_a_version_goes_live_only_when_the_workers_have_it(worker, log, operator, monkeypatch):
    monkeypatch.setattr("apps.registry.gates.verdict", lambda version: SimpleNamespace(passed=True, baseline=None, evaluation_set=None, rules=[]))
    old, new = version("old"), version("new")
    registry.promote(version=old, actor=operator)
    opener, seen = worker._opener, []

    def slowly(asked):
        time.sleep(0.2)
        seen.append((asked.name, ModelVersion.objects.get(state="live").name))
        return opener(asked)

    worker._opener = slowly
    registry.promote(version=new, actor=operator)

    assert seen == [("new", "old")]
    assert log == ["+old", "+new"]
    registry.rollback(version=ModelVersion.objects.get(state="live"), actor=operator)
    assert log == ["+old", "+new"]  # it was there still


def test_a_version_that_the_workers_cannot_load_does_not_go_live(worker, log, operator, monkeypatch):
    version("old", state="live")
    huge = version("huge", artifact_bytes=10_000)
    until(lambda: "+old" in log)
    monkeypatch.setattr("apps.registry.gates.verdict", lambda version: SimpleNamespace(passed=True, baseline=None, evaluation_set=None, rules=[]))

    with pytest.raises(Conflict, match="cannot load it: huge needs 10,000 bytes"):
        registry.promote(version=huge, actor=operator)
    assert ModelVersion.objects.get(state="live").name == "old"


def test_both_arms_are_loaded_before_an_experiment_splits_the_traffic(worker, log, operator):
    live, other = version("live", state="live"), version("other")
    experiments.start(experiment=experiments.create(control=live, treatment=other, actor=operator), actor=operator)

    assert sorted(log) == ["+live", "+other"]
    assert set(warming.wanted()) == {live.pk, other.pk}
