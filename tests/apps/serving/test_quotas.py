"""Requests and tokens a minute of a token; a POST sent twice; a question asked by many at once."""

import socket
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connections
from redis import Redis

from apps.accounts.problems import Busy
from apps.accounts.quotas import Quota
from apps.accounts.services import create_token
from apps.monitoring import names
from apps.redis import connection
from apps.serving import flight
from apps.serving.answer_log import answers as logged
from tests.apps.conftest import Api
from workers.tasks.answers import engines

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("within_a_minute")]


def with_limits(user, **limits) -> Api:
    api = Api(user)
    _row, token = create_token(user=user, name="limited", actor=user, **limits)
    api.defaults["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return api


def ask(client, prompt="What is water?", **more):
    return client.post("/api/v1/generate/", {"prompt": prompt, **more})


# -- quotas


def test_a_token_asks_so_often_a_minute_and_its_headers_count_down(viewer, live):
    client = with_limits(viewer, requests_per_minute=2)
    first, second, third = ask(client), ask(client), ask(client)
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert first["X-RateLimit-Limit-Requests"] == "2"
    assert [r["X-RateLimit-Remaining-Requests"] for r in (first, second)] == ["1", "0"]
    assert 1 <= int(third["Retry-After"]) <= 60
    assert "2 times a minute" in third.json()["detail"]


def test_openais_clients_get_their_own_form_of_the_refusal(viewer, live):
    client = with_limits(viewer, requests_per_minute=1)
    body = {"model": "dsportal", "messages": [{"role": "user", "content": "What is water?"}]}
    assert client.post("/v1/chat/completions", body).status_code == 200
    refused = client.post("/v1/chat/completions", body)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert "Retry-After" in refused


def test_the_answer_that_crosses_the_limit_of_tokens_is_given_and_the_next_one_waits(viewer, live):
    client = with_limits(viewer, tokens_per_minute=30)
    first = ask(client, "What is water, and where does it come from?")
    used = sum(first.json()["usage"].values())
    assert used > 30
    assert first.status_code == 200
    assert first["X-RateLimit-Remaining-Tokens"] == "0"
    assert ask(client).status_code == 429


def test_tokens_without_limits_of_their_own_have_the_settings(viewer, live, settings):
    settings.REQUESTS_PER_MINUTE = 1
    client = Api(viewer)
    assert ask(client).status_code == 200
    assert ask(client).status_code == 429


@pytest.mark.parametrize("began", [0.0, 17.0, 59.0])
def test_a_window_slides_and_whoever_waits_as_long_as_told_is_let_in(viewer, began):
    """Of every 60 s no more than the limit, but for what the counter cannot know: when in the last minute its requests came."""
    token, _ = create_token(user=viewer, name="limited", actor=viewer, requests_per_minute=6)
    now, let_in, waits = 6e7 + began, [], []
    for _ in range(40):
        try:
            Quota(token, clock=lambda: now).take_request()  # noqa: B023 — asked at once
            let_in.append(now)
            now += 2.5
        except Busy as full:
            waits.append(full.retry_after_seconds)
            early = now + waits[-1] - 1.01
            if early > now:
                with pytest.raises(Busy):
                    Quota(token, clock=lambda: early).take_request()  # noqa: B023
            now += waits[-1]
    assert len(let_in) > 15
    assert all(0 < seconds <= 120 for seconds in waits)
    per_minute = [sum(60 * m <= t < 60 * m + 60 for t in let_in) for m in range(int(let_in[0] // 60), int(let_in[-1] // 60))]
    assert max(per_minute) <= 6


def test_only_an_administrator_gives_more_than_the_settings(as_viewer, as_admin, settings):
    settings.REQUESTS_PER_MINUTE = 10
    asked = {"name": "many", "requests_per_minute": 100}
    assert as_viewer.post("/api/v1/tokens/", asked).status_code == 403
    assert as_viewer.post("/api/v1/tokens/", {**asked, "requests_per_minute": 5}).status_code == 201
    assert as_admin.post("/api/v1/tokens/", asked).json()["requests_per_minute"] == 100


# -- idempotency


def test_the_same_key_is_done_once_and_answered_the_same(as_viewer, live):
    first = as_viewer.post("/api/v1/generate/", {"prompt": "What is water?", "temperature": 1}, HTTP_IDEMPOTENCY_KEY="one")
    again = as_viewer.post("/api/v1/generate/", {"prompt": "What is water?", "temperature": 1}, HTTP_IDEMPOTENCY_KEY="one")
    assert again.json() == first.json()
    assert again["Idempotent-Replayed"] == "true"
    assert logged().count() == 1


def test_a_key_with_another_body_or_of_another_person_is_another_matter(as_viewer, as_operator, live):
    as_viewer.post("/api/v1/generate/", {"prompt": "What is water?"}, HTTP_IDEMPOTENCY_KEY="one")
    assert as_viewer.post("/api/v1/generate/", {"prompt": "What is iron?"}, HTTP_IDEMPOTENCY_KEY="one").status_code == 422
    assert as_operator.post("/api/v1/generate/", {"prompt": "What is iron?"}, HTTP_IDEMPOTENCY_KEY="one").status_code == 200


def test_what_failed_may_be_tried_again_with_its_key(as_viewer, live, monkeypatch):
    monkeypatch.setattr("apps.serving.services.settings.MAX_IN_FLIGHT", 0)
    assert as_viewer.post("/api/v1/generate/", {"prompt": "What is water?"}, HTTP_IDEMPOTENCY_KEY="one").status_code == 429
    monkeypatch.setattr("apps.serving.services.settings.MAX_IN_FLIGHT", 8)
    assert as_viewer.post("/api/v1/generate/", {"prompt": "What is water?"}, HTTP_IDEMPOTENCY_KEY="one").status_code == 200


# -- Redis away


@pytest.fixture
def nowhere() -> Redis:
    """A client of a Redis that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Redis(port=probe.getsockname()[1], retry=None)


def test_a_quota_that_cannot_be_asked_is_an_outage_not_a_fault(viewer, live, nowhere, monkeypatch):
    monkeypatch.setattr("apps.redis.counting", lambda: nowhere)
    monkeypatch.setattr("apps.redis._idle", deque())
    client = with_limits(viewer, requests_per_minute=2)
    refused = ask(client)
    as_openai = client.post("/v1/chat/completions", {"model": "live", "messages": [{"role": "user", "content": "What is water?"}]})
    assert refused.status_code == as_openai.status_code == 503
    assert "Ask again" in refused.json()["detail"]
    assert "Ask again" in as_openai.json()["error"]["message"]


def test_what_was_done_is_not_done_again_where_its_key_cannot_be_kept(as_viewer, live, nowhere, monkeypatch):
    clients = iter([connection(), nowhere])
    monkeypatch.setattr("apps.accounts.idempotency.connection", lambda: next(clients))
    assert as_viewer.post("/api/v1/generate/", {"prompt": "What is water?"}, HTTP_IDEMPOTENCY_KEY="one").status_code == 200
    assert logged().count() == 1


# -- single flight


@pytest.mark.django_db(transaction=True)
def test_a_question_asked_by_many_at_once_is_worked_out_once(viewer, live, monkeypatch):
    engine, enter = engines._held[live.pk].engine, flight.enter
    asked, submit, together = [], engine.submit, Barrier(13)  # the engine begins when all twelve have asked

    def entered(*args, **kwargs):
        found = enter(*args, **kwargs)
        together.wait(50)
        return found

    def slow(*args, **kwargs):
        asked.append(args)
        together.wait(50)
        return submit(*args, **kwargs)

    monkeypatch.setattr(flight, "enter", entered)
    engine.submit = slow
    clients = [Api(viewer) for _ in range(12)]

    def one(client):
        try:
            return ask(client, "What is a tide?").json()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(one, clients))
    assert len(asked) == 1
    assert {answer["text"] for answer in answers} == {"You asked: What is a tide?"}
    assert len({answer["answer"] for answer in answers}) == 12  # each may rate its own
    assert not list(connection().scan_iter(names.FLIGHT.format(key="*")))


@pytest.mark.django_db(transaction=True)
def test_when_the_first_asker_goes_away_another_one_goes_on(viewer, live):
    from apps.serving import services
    from apps.serving.questions import Question

    question = Question([{"role": "user", "content": "What is a tide?"}])
    first = services.ask(question=question, user=viewer, channel="generate")
    engine = engines._held[live.pk].engine
    submit = engine.submit

    def slow(*args, **kwargs):
        time.sleep(0.8)
        return submit(*args, **kwargs)

    engine.submit = slow
    pieces = first.pieces()
    next(pieces)
    with ThreadPoolExecutor(1) as pool:

        def second():
            try:
                return services.ask(question=question, user=viewer, channel="generate").whole()
            finally:
                connections.close_all()

        reading = pool.submit(second)
        time.sleep(0.3)
        pieces.close()
        assert reading.result(20) == "You asked: What is a tide?"
