"""An upstream behind the engine's interface, against a real server in a process of its own that is killed and started again."""

import asyncio
import gc
import json
import logging
import threading
import time
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from tests.upstream_server import KEY
from workers.engine import EngineClosed, EngineError, EngineFull, ParameterRefused, SamplingParams, open_engine
from workers.upstream import engine as upstream_engine
from workers.upstream import guard
from workers.upstream.engine import UpstreamEngine


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(engine: UpstreamEngine, text: str, **how):
    return engine.submit(asking(text), SamplingParams(max_tokens=how.pop("max_tokens", 100), **how)).result(60)


def wait_for(condition: Callable[[], object], what: str, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_an_answer_comes_in_pieces_with_its_usage_and_end(engine):
    pieces: list[str] = []
    done = engine.submit(asking("one two three"), SamplingParams(max_tokens=100), pieces.append).result(60)
    assert "".join(pieces) == done.text == "one two three"
    assert (done.prompt_tokens, done.tokens, done.reused_tokens, done.finish_reason) == (7, 3, 3, "stop")
    assert ask(engine, "one two three", max_tokens=2).finish_reason == "length"
    assert engine.stats().completion_tokens == 5


def test_parameters_are_passed_on_and_defaults_left_out(engine):
    ask(engine, "first")
    plain = json.loads(ask(engine, "recall").text)
    assert {"top_p", "seed", "stop", "logit_bias", "top_k", "response_format"}.isdisjoint(plain)
    schema = {"type": "object", "properties": {"kind": {"enum": ["a"]}}}
    ask(
        engine, "second", temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=7, stop=("END",), presence_penalty=0.2, frequency_penalty=0.3,
        repetition_penalty=1.1, logit_bias=((3, -100),), logprobs=2, schema=json.dumps(schema),
    )  # fmt: skip
    body = json.loads(ask(engine, "recall").text)
    expected = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "stop": ["END"], "presence_penalty": 0.2, "frequency_penalty": 0.3,
        "repetition_penalty": 1.1, "logit_bias": {"3": -100}, "logprobs": True, "top_logprobs": 2, "max_tokens": 100, "model": "words", "stream": True,
    }  # fmt: skip
    assert body.items() >= expected.items()
    assert body["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(ParameterRefused, match="regular expression"):
        ask(engine, "third", regex="a+")


def test_logprobs_are_told_by_token(engine):
    done = ask(engine, "one two", logprobs=1)
    assert [(engine.spell(token.token), token.logprob) for token in done.logprobs] == [(b"one ", -0.5), (b"two ", -0.5)]
    assert [engine.spell(other.token) for other in done.logprobs[0].top] == [b"x"]


def test_a_text_is_embedded_with_length_one(engine):
    ticket = engine.embed("one")
    assert ticket.result(60).prompt_tokens == 2
    assert ticket.embedding == pytest.approx(np.array([0.6, 0.8]))


def test_a_refusal_is_the_asker_s_and_a_wrong_key_is_told_without_the_key(engine, server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ParameterRefused, match="max_tokens is too large"):
        ask(engine, "refuse")
    monkeypatch.setenv("DSPORTAL_UPSTREAM_KEY_TESTS", "another")
    with pytest.raises(EngineError, match="refuses the portal's key"):
        ask(engine, "one")
    assert KEY not in caplog.text
    assert "another" not in caplog.text


def test_what_is_busy_is_asked_again(engine):
    assert ask(engine, "busy now").text == "busy now"


def test_what_broke_off_in_the_middle_is_an_error_and_is_not_asked_again(engine):
    heard: list[str] = []
    with pytest.raises(EngineError, match="broke off in the middle"):
        engine.submit(asking("one two fall"), SamplingParams(max_tokens=100), heard.append).result(60)
    assert "".join(heard) == "one two"


@pytest.mark.parametrize(("question", "said"), [("one two hang", r"Nothing came for 1\.5 s"), ("mute", r"has not begun to answer within 1\.5 s")])
def test_a_server_that_falls_silent_is_told_of_is_not_asked_again_and_it_counts(spec, server, monkeypatch, question, said):
    for module in (upstream_engine, guard):
        monkeypatch.setattr(module, "TIMEOUT", httpx.Timeout(5.0, read=1.5))
    engine = UpstreamEngine(spec)
    asked: list[str] = []

    async def note(request: httpx.Request) -> None:
        asked.append(request.method)

    engine._client.event_hooks = {"request": [note]}
    try:
        with pytest.raises(EngineError, match=said):
            ask(engine, question)
        assert engine.health().failures == 1
        assert asked.count("POST") == 1
    finally:
        engine.close()


def test_a_server_that_sends_questions_elsewhere_is_not_followed_and_the_asker_is_not_blamed(engine):
    with pytest.raises(EngineError, match="address that it was connected by") as refused:
        ask(engine, "moved")
    assert not isinstance(refused.value, ParameterRefused)
    assert engine.health().failures == 1


def test_a_wrong_key_is_not_told_as_a_question_that_is_too_long(engine, monkeypatch):
    monkeypatch.setenv("DSPORTAL_UPSTREAM_KEY_TESTS", "another")
    with pytest.raises(EngineError) as refused:
        ask(engine, "one")
    assert "too long" not in str(refused.value)


def test_cancelling_and_a_deadline_close_the_connection(engine):
    begun = threading.Event()
    ticket = engine.submit(asking("slow " * 100), SamplingParams(max_tokens=100), lambda _: begun.set())
    assert begun.wait(30)
    ticket.cancel()
    done = ticket.result(30)
    assert done.finish_reason == "cancelled"
    assert done.text
    late = engine.submit(asking("slow " * 100), SamplingParams(max_tokens=100), deadline=time.monotonic() + 2).result(30)
    assert late.finish_reason == "timeout"
    wait_for(lambda: ask(engine, "stopped").text == "2", "the server noticed that nobody reads")


def test_a_batch_waits_behind_those_who_talk(spec):
    engine, ends, begun = UpstreamEngine(spec, concurrency=1), [], threading.Event()
    try:
        first = engine.submit(asking("slow " * 100), SamplingParams(max_tokens=100), lambda _: begun.set())
        assert begun.wait(30)
        tickets = {name: engine.submit(asking(name), SamplingParams(max_tokens=9), is_batch=name == "batch") for name in ("batch", "chat")}
        for name, ticket in tickets.items():
            ticket.when_done(lambda name=name: ends.append(name))
        first.cancel()  # only now is there room for another
        for ticket in (first, *tickets.values()):
            ticket.result(60)
        assert ends == ["chat", "batch"]
        assert [c.text for c in engine.generate_all([asking("a"), asking("b")], 5)] == ["a", "b"]
    finally:
        engine.close()


def test_the_line_is_bounded_and_closing_tells_whoever_waits(spec):
    engine = UpstreamEngine(spec, concurrency=1, max_waiting=1)
    waiting = [engine.submit(asking("slow " * 100), SamplingParams(max_tokens=100)) for _ in range(2)]
    with pytest.raises(EngineFull):
        ask(engine, "one")
    engine.close()
    for ticket in waiting:
        with pytest.raises(EngineClosed):
            ticket.result(5)
    with pytest.raises(EngineClosed):
        ask(engine, "one")


def test_closing_leaves_no_task_behind_neither_of_those_asked_nor_of_those_in_line(spec):
    engine = UpstreamEngine(spec, concurrency=1)
    tickets = [engine.submit(asking("slow " * 100), SamplingParams(max_tokens=100)) for _ in range(3)]
    wait_for(lambda: engine.stats().running, "the first is on its way")
    engine.close()
    gc.collect()
    assert not asyncio.all_tasks(engine._loop)
    for ticket in tickets:
        with pytest.raises(EngineClosed):
            ticket.result(5)


def test_a_dead_upstream_is_left_alone_and_taken_up_again_when_it_is_back(spec, server, monkeypatch):
    monkeypatch.setattr(guard, "HEALTH_SECONDS", 0.1)
    monkeypatch.setattr(guard, "OPEN_SECONDS", 0.5)
    engine = UpstreamEngine(spec)
    try:
        assert ask(engine, "one").text == "one"
        server.kill()
        wait_for(lambda: engine.health().state == "open", "the circuit opens")
        with pytest.raises(EngineError, match="does not answer"):
            ask(engine, "two")
        assert engine.health().failures >= guard.FAILURES_UNTIL_OPEN
        assert engine.health().error
        server.start()
        wait_for(lambda: engine.health().state == "closed", "the circuit closes")
        assert ask(engine, "three").text == "three"
        assert engine.health().error == ""
    finally:
        engine.close()


def test_a_server_that_lists_its_models_and_breaks_off_its_answers_is_left_alone(spec, server, monkeypatch):
    monkeypatch.setattr(guard, "HEALTH_SECONDS", 0.01)
    monkeypatch.setattr(guard, "OPEN_SECONDS", 60)
    engine = UpstreamEngine(spec)
    try:
        for _ in range(guard.FAILURES_UNTIL_OPEN):
            with pytest.raises(EngineError, match="broke off in the middle"):
                ask(engine, "one two fall")
            checked = engine.health().checked_at
            wait_for(lambda before=checked: engine.health().state == "open" or engine.health().checked_at > before, "it is checked, and answers")
        assert engine.health().state == "open"
        assert "broke off" in engine.health().error
    finally:
        engine.close()


@pytest.mark.parametrize("question", ["mute", "one two hang"])
def test_an_asker_who_stops_waiting_says_nothing_of_the_server(spec, server, question):
    engine = UpstreamEngine(spec)
    try:
        for _ in range(guard.FAILURES_UNTIL_OPEN - 1):
            with pytest.raises(EngineError, match="broke off in the middle"):
                ask(engine, "one two fall")

        stopped = engine.submit(asking(question), SamplingParams(max_tokens=100), deadline=time.monotonic() + 0.5).result(30)

        assert stopped.finish_reason == "timeout"
        assert engine.health().failures == guard.FAILURES_UNTIL_OPEN - 1
        assert engine.health().state == "closed"
        with pytest.raises(EngineError, match="broke off in the middle"):
            ask(engine, "one two fall")
        assert engine.health().state == "open"
    finally:
        engine.close()


@pytest.mark.parametrize(("question", "said"), [("empty", "may be too long for it"), ("fault", "it failed inside")])
def test_questions_that_fail_alone_do_not_close_the_upstream_to_others(engine, monkeypatch, question, said):
    monkeypatch.setattr(guard, "ATTEMPTS", 1)
    for _ in range(guard.FAILURES_UNTIL_OPEN):
        with pytest.raises(EngineError, match=said):
            ask(engine, question)
    assert engine.health().state == "closed"
    assert ask(engine, "one").text == "one"


def test_a_batch_does_not_wait_for_an_answer_that_will_not_come(engine, monkeypatch):
    monkeypatch.setattr(guard, "ATTEMPTS", 1)
    with pytest.raises(EngineError, match="may be too long for it"):
        engine.generate_all([asking("empty")], 5)


def test_a_batch_does_not_wait_for_ever_for_an_answer_that_goes_on_and_on(engine, monkeypatch):
    monkeypatch.setattr(upstream_engine, "LONGEST_SECONDS", 0.5)
    with pytest.raises(EngineError, match=r"still at one answer after 0\.5 s"):
        engine.generate_all([asking("slow " * 100)], 100)
    wait_for(lambda: ask(engine, "stopped").text != "0", "the server notices that nobody reads")


def test_a_question_that_finds_nobody_is_answered_by_the_server_that_comes(spec, server, monkeypatch):
    monkeypatch.setattr(guard, "ATTEMPTS", 1000)
    monkeypatch.setattr(guard, "FAILURES_UNTIL_OPEN", 1000)
    server.kill()
    engine = UpstreamEngine(spec)
    try:
        ticket = engine.submit(asking("one two"), SamplingParams(max_tokens=9))
        wait_for(lambda: engine.health().failures, "it was asked in vain")
        server.start()
        assert ticket.result(60).text == "one two"
    finally:
        engine.close()


def test_a_folder_that_names_an_upstream_is_opened_as_one(server, spec, tmp_path):
    (tmp_path / "upstream.json").write_text(spec.model_dump_json())
    engine = open_engine(tmp_path)
    try:
        assert [c.text for c in engine.generate_all([asking("one")], 5)] == ["one"]
    finally:
        engine.close()
