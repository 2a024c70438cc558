"""Answers that are cut at their deadline, and those whose asker went away."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from django.conf import settings

from apps.monitoring import names
from apps.redis import connection
from apps.serving import services
from apps.serving.answer_log import answers as logged
from apps.serving.questions import Question
from tests.apps import making
from tests.apps.answering import Echo
from tests.apps.conftest import Api
from tests.apps.serving.test_openai_api import client, live  # noqa: F401 — fixtures
from workers.tasks.answers import engines
from workers.tasks.cancelling import cancellations

LONG = "water " * 60


def until(condition, seconds: float = 20.0):
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends
        time.sleep(0.01)
    return found


def asked(**parameters) -> services.Pending:
    return services.ask(question=Question([{"role": "user", "content": LONG}], temperature=0.5, **parameters), user=None, channel="generate")


@pytest.fixture
def slow(monkeypatch):
    """A model that never ends in time."""
    forward = Echo.forward

    def slowly(self, chunks):
        time.sleep(0.05)
        return forward(self, chunks)

    monkeypatch.setattr(Echo, "forward", slowly)
    monkeypatch.setattr(settings, "ANSWER_TIMEOUT_SECONDS", 1.0)


class Steps:
    """The model takes a step only where it is allowed one."""

    def __init__(self):
        self.allowed, self.begun = threading.Semaphore(0), 0

    def guard(self, forward):
        def guarded(echo, chunks):
            self.begun += 1
            assert self.allowed.acquire(timeout=20)
            return forward(echo, chunks)

        return guarded


@pytest.fixture
def steps(monkeypatch):
    counted = Steps()
    monkeypatch.setattr(Echo, "forward", counted.guard(Echo.forward))
    yield counted
    counted.allowed.release(1000)


def test_an_answer_that_is_not_whole_in_time_is_a_time_out_and_no_answer(live, slow, person):  # noqa: F811
    response = Api(person("viewer")).post("/api/v1/generate/", {"prompt": LONG, "temperature": 0.5})

    assert (response.status_code, response.json()["title"]) == (504, "No answer in time")
    assert logged().get().status == "error"


def test_a_stream_that_is_not_whole_in_time_ends_in_an_error(client, slow):  # noqa: F811
    with pytest.raises(openai.APIError, match="No complete answer within"):
        list(client.chat.completions.create(model="dsportal", messages=[{"role": "user", "content": LONG}], temperature=0.5, stream=True))


@pytest.mark.parametrize(("reason", "status"), [("timeout", 504), ("cancelled", 503)])
def test_what_a_worker_cut_off_is_told_so_though_the_asker_has_time_left(transactional_db, reason, status):
    making.version("v1", state="live")
    pending = asked()
    stream = names.STREAM.format(answer=pending.id)
    connection().xadd(stream, {"at": 0, "text": "Half an"})
    connection().xadd(stream, {"end": f'{{"prompt_tokens": 7, "completion_tokens": 2, "finish_reason": "{reason}", "reused_tokens": 0}}'})

    with pytest.raises(services.Problem) as refused:
        pending.whole()

    assert refused.value.status == status
    row = logged().get(pk=pending.id)
    assert (row.status, row.text, row.completion_tokens) == ("error", "Half an", 2)


@pytest.mark.parametrize("connection_lost", [False, True])
def test_the_slot_is_free_after_the_step_in_which_the_asker_went_away(live, steps, connection_lost):  # noqa: F811
    engine = engines._held[live.pk].engine
    pieces = asked(max_tokens=60).pieces()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(next, pieces)
        while steps.begun < 2 or not reading.done():  # after a second it reads a sign of life, whether or not the worker has begun
            steps.allowed.release()
            time.sleep(0.05)
    making = until(lambda: next(iter(cancellations._heard.values()), None))
    while steps.allowed.acquire(blocking=False):
        pass
    until(lambda: engine._scheduler.running and steps.begun >= 2)  # in the middle of a step
    if connection_lost:
        connection().client_kill_filter(_type="pubsub")  # what is said now is said to nobody: the listener looks when it is back
    begun = steps.begun

    pieces.close()
    until(lambda: making.is_cancelled)
    steps.allowed.release()

    until(lambda: engine.stats().running == 0)
    assert steps.begun <= begun + 1  # at most the one that began while we looked
