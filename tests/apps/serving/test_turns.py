"""A few questions of a web process are worked on at a time; those at an engine hold nobody up."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections

from apps.serving import door as doors
from apps.serving import services
from apps.serving.turns import Turns
from tests.apps import making
from tests.apps.conftest import Api
from workers.tasks.answers import engines


def test_no_more_threads_than_turns_are_at_work_and_all_come_to_their_turn():
    turns, at_work, most = Turns(2), [], []

    def work(number: int) -> None:
        with turns.taken():
            at_work.append(number)
            most.append(len(at_work))
            time.sleep(0.005)
            at_work.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert len(most) == 24
    assert max(most) == 2


def test_turns_are_taken_in_the_order_in_which_threads_came():
    turns, order, waiting = Turns(1), [], []

    def work(number: int) -> None:
        with turns.taken():
            order.append(number)

    with turns.taken():
        for number in range(8):
            waiting.append(threading.Thread(target=work, args=[number]))
            waiting[-1].start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    for thread in waiting:
        thread.join(10)
    assert order == list(range(8))


def test_a_turn_comes_back_once_whether_it_was_given_up_or_its_work_failed():
    turns = Turns(1)
    turns.give_up()  # by a thread that has none
    with turns.taken():
        turns.give_up()
        turns.give_up()
    with pytest.raises(ValueError, match="wrong"), turns.taken():
        raise ValueError("wrong")
    with turns.taken():
        waits = threading.Thread(target=lambda: turns.taken().__enter__(), daemon=True)
        waits.start()
        waits.join(0.1)
        assert waits.is_alive()


@pytest.mark.django_db(transaction=True)
def test_an_answer_from_the_cache_comes_while_an_engine_works_on_others(viewer, answers_with, monkeypatch):
    one_turn = Turns(1)
    monkeypatch.setattr(doors, "turns", one_turn)
    monkeypatch.setattr(services, "turns", one_turn)
    version = making.version("v1", state="live")
    answers_with(version)
    client = Api(viewer)
    known = {"prompt": "What is water?"}
    client.post("/api/v1/generate/", known)
    engine, working, goes_on = engines._held[version.pk].engine, threading.Event(), threading.Event()
    submit = engine.submit

    def slow(*args, **kwargs):
        working.set()
        goes_on.wait(20)
        return submit(*args, **kwargs)

    engine.submit = slow

    def other() -> dict:
        try:
            return Api(viewer).post("/api/v1/generate/", {"prompt": "What is a tide?"}).json()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other)
        try:
            assert working.wait(20)
            assert client.post("/api/v1/generate/", known).json()["cached"]
            assert not waiting.done()
        finally:
            goes_on.set()
        assert waiting.result(20)["text"] == "You asked: What is a tide?"
