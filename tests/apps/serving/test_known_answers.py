"""What this web process has in its own cache is answered, counted and logged by one command to Redis, which does nothing once something else serves."""

import threading

import pytest
import redis

import apps.redis as lines
from apps.accounts import selectors
from apps.accounts.services import create_token
from apps.experiments import services as experiments
from apps.monitoring import names
from apps.monitoring.tally import tally
from apps.redis import connection
from apps.registry.models import ModelVersion
from apps.serving import epoch, near_cache
from apps.serving.answer_log import answers as logged
from tests.apps import making
from tests.apps.conftest import Api

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("within_a_minute")]

CHAT = {"model": "dsportal", "messages": [{"role": "user", "content": "What is water?"}]}


@pytest.fixture(autouse=True)
def is_remembered_for_long(settings, monkeypatch):
    """What is remembered of routes, tokens and answers for some seconds: on a busy machine a question takes as long."""
    settings.ROUTES_KEPT_SECONDS = 3600.0
    monkeypatch.setattr(selectors, "TOKEN_CACHE_SECONDS", 3600)
    monkeypatch.setattr(near_cache, "REFRESH_SECONDS", 3600.0)


@pytest.fixture
def limited(viewer) -> Api:
    api = Api(viewer)
    _row, token = create_token(user=viewer, name="limited", actor=viewer, requests_per_minute=4, tokens_per_minute=100_000)
    api.defaults["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return api


@pytest.fixture
def commands(monkeypatch) -> list[str]:
    """What this thread sends to Redis."""
    here, sent, send = threading.get_ident(), [], redis.Connection.send_packed_command

    def recorded(self, command, check_health=True):
        if threading.get_ident() == here:
            sent.append(command)
        return send(self, command, check_health)

    monkeypatch.setattr(redis.Connection, "send_packed_command", recorded)
    return sent


def none_yet(commands: list[str]) -> None:
    """Begin to count. What the charts wait for is written: their writer is not at it meanwhile, with the connection that is at hand."""
    tally.write()
    commands.clear()


def ask(client, **more):
    return client.post("/api/v1/generate/", {"prompt": "What is water?", **more})


def test_an_answer_that_is_known_here_is_one_command_and_everything_is_counted_by_it(limited, live, commands):
    first = ask(limited).json()
    before, log = limited_to(ask(limited)), connection().xlen(names.ANSWER_LOG)
    none_yet(commands)

    known = ask(limited)

    assert len(commands) == 1
    assert (known.json()["text"], known.json()["usage"], known.json()["cached"]) == (first["text"], first["usage"], True)
    assert connection().xlen(names.ANSWER_LOG) == log + 1
    assert limited_to(known) == (before[0] - 1, before[1] - sum(first["usage"].values()))
    assert logged().get(pk=known.json()["answer"]).cached


def limited_to(response) -> tuple[int, int]:
    """Requests and tokens that are left, as the answer says."""
    return int(response["X-RateLimit-Remaining-Requests"]), int(response["X-RateLimit-Remaining-Tokens"])


def test_it_is_given_in_openais_form_too_whole_and_as_a_stream(limited, live, commands):
    first = limited.post("/v1/chat/completions", CHAT).json()
    none_yet(commands)
    again = limited.post("/v1/chat/completions", CHAT).json()
    assert len(commands) == 1
    assert (again["choices"], again["usage"]["total_tokens"]) == (first["choices"], first["usage"]["total_tokens"])
    streamed = limited.stream(limited.post("/v1/chat/completions", {**CHAT, "stream": True}))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in streamed[:-1]) == first["choices"][0]["message"]["content"]
    assert logged().filter(cached=True).count() == 2


def test_what_another_process_promotes_answers_at_once(limited, live, answers_with):
    ask(limited)
    assert ask(limited).json()["version"] == live.pk
    other = making.version("v2")
    answers_with(other)
    ModelVersion.objects.filter(pk=live.pk).update(state="retired")
    ModelVersion.objects.filter(pk=other.pk).update(state="live")
    epoch.change()

    answer = ask(limited)

    assert (answer.json()["version"], answer.json()["cached"]) == (other.pk, False)
    assert limited_to(answer)[0] == 1  # of four: it was taken once
    assert logged().count() == 3


def test_an_experiment_that_another_process_starts_is_asked_at_once(limited, live, answers_with, operator, django_capture_on_commit_callbacks):
    ask(limited)
    other = making.version("v2")
    answers_with(other)
    with django_capture_on_commit_callbacks(execute=True):
        experiments.start(experiment=experiments.create(control=live, treatment=other, split=0.999999, actor=operator), actor=operator)
    assert ask(limited).json()["version"] == other.pk


def test_a_request_over_the_limit_is_neither_answered_nor_logged(limited, live):
    assert [ask(limited).status_code for _ in range(6)] == [200] * 4 + [429] * 2
    assert logged().count() == 4


def test_a_request_that_nobody_can_read_counts_too(limited, live):
    assert [ask(limited, max_tokens="many").status_code for _ in range(6)] == [400] * 4 + [429] * 2
    assert ask(limited).status_code == 429


def test_a_token_that_is_not_known_is_told_nothing_of_what_is_known_here(limited, live):
    ask(limited)
    stranger = Api()
    stranger.defaults["HTTP_AUTHORIZATION"] = "Bearer nobody"
    assert ask(stranger).status_code == 401
    assert logged().count() == 1


def test_an_outage_of_redis_is_told_and_nothing_is_counted_twice(limited, live, monkeypatch):
    ask(limited)
    done = lines._done

    def lost(*command):
        done(*command)
        raise redis.TimeoutError("no reply")

    with monkeypatch.context() as broken:
        broken.setattr(lines, "_done", lost)
        assert ask(limited).status_code == 503
    assert limited_to(ask(limited))[0] == 1
