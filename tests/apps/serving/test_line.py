"""The line of questions in Redis, and workers that take from it."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from apps.monitoring import names
from apps.redis import connection
from apps.serving import flight, line
from apps.serving.line import Asked, Window


def asked(answer: str) -> Asked:
    return Asked(answer, "v1", [{"role": "user", "content": "水?"}], {"max_tokens": 3}, time.time() + 60, "", True, {"sent": "1"})


@pytest.fixture
def window(redis_server, monkeypatch):
    monkeypatch.setattr(names, "ASKED", "tests:asked")  # the worker of other tests takes none of these

    def open_window(worker: str) -> Window:
        opened = Window(worker)
        opened.open()
        return opened

    return open_window


def fall_silent(worker: str, *numbers: str) -> None:
    """As if the worker had said nothing of these for longer than it may be silent."""
    connection().xclaim(names.ASKED, line.GROUP, worker, 0, list(numbers), idle=round(2000 * line.LOST_SECONDS), justid=True)


def done(window: Window, *numbers: str) -> None:
    pipe = connection().pipeline()
    window.done(pipe, numbers)
    pipe.execute()


def test_each_question_is_taken_once_as_it_was_asked(window):
    first, second = window("first"), window("second")
    numbers = [line.stand(asked(answer)) for answer in "abc"]

    taken = first.take(2, 0.01) + second.take(9, 0.01)

    assert [(question.answer, question.number) for question in taken] == list(zip("abc", numbers, strict=True))
    assert taken[0].messages == [{"role": "user", "content": "水?"}]
    assert first.take(9, 0.01) == []


def test_a_question_is_in_the_line_until_it_is_answered(window):
    worker, number = window("worker"), line.stand(asked("a"))
    worker.take(1, 0.01)
    assert line.is_there(number)

    done(worker, number)

    assert not line.is_there(number)
    assert worker.take_over(9) == []


def test_what_a_silent_worker_had_goes_to_another_and_what_is_kept_does_not(window):
    silent, living, other = window("silent"), window("living"), window("other")
    lost = line.stand(asked("lost"))
    silent.take(1, 0.01)
    kept = line.stand(asked("kept"))
    living.take(1, 0.01)

    fall_silent("silent", lost)
    fall_silent("living", kept)
    living.keep([kept])

    assert [question.answer for question in other.take_over(9)] == ["lost"]
    assert other.take_over(9) == []  # its own now


def test_a_question_whose_asker_left_is_not_taken_over(window):
    silent, other = window("silent"), window("other")
    number = line.stand(asked("a"))
    silent.take(1, 0.01)
    fall_silent("silent", number)
    flight.leave("a", number=number)

    assert other.take_over(9) == []
    assert connection().xpending(names.ASKED, line.GROUP)["pending"] == 0


def test_a_worker_that_waits_goes_on_when_redis_is_emptied(window):
    worker = window("worker")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.take, 1, 5)
        time.sleep(0.1)  # it waits in Redis by then; Redis 7.0 does not tell who does
        connection().flushall()

        assert waiting.result(5) == []


def test_an_entry_that_is_no_question_does_not_hold_up_those_behind_it(window):
    worker = window("worker")
    connection().xadd(names.ASKED, {"question": '["of another release"]'})
    line.stand(asked("a"))

    assert [question.answer for question in worker.take(9, 0.01)] == ["a"]
    assert connection().xlen(names.ASKED) == 1


def test_a_worker_goes_on_when_redis_was_emptied(window):
    worker = window("worker")
    connection().flushall()
    line.stand(asked("a"))

    assert worker.take(1, 0.01) == []  # it opens the line anew
    assert [question.answer for question in worker.take(1, 0.01)] == ["a"]
