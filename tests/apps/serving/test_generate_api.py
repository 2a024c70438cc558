import time

import pytest
from django.conf import settings

from apps.experiments import services as experiments
from apps.monitoring import names
from apps.redis import connection
from apps.serving.answer_log import answers as logged
from tests.apps import making
from workers.tasks.answers import engines

pytestmark = pytest.mark.django_db


def ask(client, prompt="What is water?", **more):
    return client.post("/api/v1/generate/", {"prompt": prompt, **more})


def test_an_answer_names_its_version_and_counts_its_tokens(as_viewer, viewer, live):
    answer = ask(as_viewer).json()

    assert answer["text"] == "You asked: What is water?"
    assert (answer["version"], answer["version_name"], answer["cached"]) == (live.pk, "v1", False)
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["latency_ms"] > 0
    row = logged().get(pk=answer["answer"])
    assert (row.user, row.text, row.status) == (viewer, answer["text"], "ok")


def test_the_second_asking_comes_from_the_cache_and_is_an_answer_of_its_own(as_viewer, live):
    first, second = ask(as_viewer).json(), ask(as_viewer).json()

    assert second["cached"]
    assert second["text"] == first["text"]
    assert second["answer"] != first["answer"]


@pytest.mark.parametrize("other", [{"max_tokens": 63}, {"temperature": 0.5}, {"prompt": "what is water?"}, {"stop": ["zzz"]}])
def test_another_question_or_other_parameters_do_not_come_from_the_cache(as_viewer, live, other):
    ask(as_viewer)

    assert not ask(as_viewer, **other).json()["cached"]


def test_another_version_never_answers_from_this_ones_cache(as_viewer, live, answers_with):
    other = making.version("v2")
    answers_with(other)
    ask(as_viewer)

    answer = ask(as_viewer, version="v2").json()

    assert (answer["cached"], answer["version"]) == (False, other.pk)


@pytest.mark.parametrize("by", ["pk", "name"])
def test_a_version_is_named_by_its_id_or_its_name(as_viewer, live, answers_with, by):
    other = making.version("v2-int8")
    answers_with(other)

    assert ask(as_viewer, version=getattr(other, by)).json()["version"] == other.pk


def test_an_answer_ends_at_a_stop_string_and_at_the_limit(as_viewer, live):
    assert ask(as_viewer, stop=["water"]).json()["text"] == "You asked: What is"
    short = ask(as_viewer, max_tokens=1).json()
    assert (short["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 1)


def test_without_a_live_version_the_answer_says_what_to_wait_for(as_viewer):
    response = ask(as_viewer)

    assert response.status_code == 503
    assert "live" in response.json()["detail"]


def test_a_fault_in_the_worker_ends_the_answer_at_once(as_viewer, live, monkeypatch):
    monkeypatch.setattr(engines._held[live.pk].engine, "submit", None)  # what nobody expects: an engine that is none
    began = time.monotonic()

    response = ask(as_viewer)

    assert response.status_code == 503
    assert "log" in response.json()["detail"]
    assert time.monotonic() - began < settings.ANSWER_TIMEOUT_SECONDS / 2


def test_a_full_queue_answers_429_and_when_to_come_back(as_viewer, live, monkeypatch):
    monkeypatch.setattr(settings, "MAX_IN_FLIGHT", 2)
    connection().zadd(names.IN_FLIGHT, {"a": 9e9, "b": 9e9})

    response = ask(as_viewer)

    assert response.status_code == 429
    assert int(response["Retry-After"]) >= 1
    assert connection().zscore(names.IN_FLIGHT, "a")


def test_a_question_longer_than_the_model_can_read_is_refused_with_its_length(as_viewer, live):
    response = ask(as_viewer, "word " * 2000)

    assert response.status_code == 400
    assert "tokens" in response.json()["detail"]
    assert logged().get().status == "error"


def test_a_conversation_keeps_its_arm_and_arms_are_split_as_planned(as_operator, operator, live, answers_with):
    other = making.version("v2")
    answers_with(other)
    running = experiments.start(experiment=experiments.create(control=live, treatment=other, split=0.5, actor=operator), actor=operator)

    def version_for(subject):
        return as_operator.post("/api/v1/generate/", {"prompt": "Hi?", "max_tokens": 1}, headers={"X-Conversation-Id": subject}).json()["version"]

    arms = {f"c{n}": version_for(f"c{n}") for n in range(24)}

    assert set(arms.values()) == {live.pk, other.pk}
    assert all(version_for(subject) == arm for subject, arm in arms.items())
    assert set(logged().values_list("experiment", flat=True)) == {running.pk}
