"""Answers are written to Redis first and to the database a moment later: none is lost, none is there twice, one's own is there at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
from django.db import connections, transaction
from django.utils import timezone

from apps.feedback.models import Feedback
from apps.monitoring import names
from apps.redis import Ledger, connection
from apps.serving import answer_log
from apps.serving.models import Answer, Conversation
from tests.apps import making

pytestmark = pytest.mark.django_db(transaction=True)


def ask(client, prompt="What is water?", **more):
    return client.post("/api/v1/generate/", {"prompt": prompt, **more}).json()


def waiting() -> int:
    return connection().xlen(names.ANSWER_LOG)


def log(version, **fields) -> Answer:
    """An answer in the stream, as a web process leaves it."""
    made = Answer(model_version=version, **{"route": "generate", "prompt": "p", "prompt_key": "k", "text": "t", **fields})
    ledger = Ledger()
    answer_log.append({field.attname: getattr(made, field.attname) for field in Answer._meta.concrete_fields}, ledger)
    ledger.write()
    return made


def test_ones_own_answer_is_there_at_once_to_read_and_rate_and_go_on_from(as_viewer, live):
    first, second = ask(as_viewer, temperature=0.7, seed=3), ask(as_viewer)
    assert (waiting(), Answer.objects.count()) == (2, 0)

    read = as_viewer.get(f"/api/v1/answers/{first['answer']}/").json()

    assert (read["text"], read["parameters"]["seed"], read["usage"], read["latency_ms"]) == (first["text"], 3, first["usage"], first["latency_ms"])
    assert (waiting(), Answer.objects.count()) == (0, 2)
    third = ask(as_viewer)
    assert as_viewer.post("/api/v1/feedback/", {"answer": third["answer"], "rating": 4}).status_code == 201
    assert [row["id"] for row in as_viewer.get("/api/v1/answers/").json()["results"]] == [third["answer"], second["answer"], first["answer"]]


def test_an_answer_written_by_several_at_once_is_one_row(live):
    made = [log(live, text=str(n)) for n in range(50)]
    together = threading.Barrier(4)

    def write(_):
        try:
            together.wait(10)
            return answer_log.settle()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert sorted(Answer.objects.values_list("pk", "text")) == sorted((row.pk, row.text) for row in made)
    assert waiting() == 0


def test_an_answer_stays_in_the_stream_until_its_row_is_committed(live):
    made = log(live)

    class Killed(Exception):
        pass

    with pytest.raises(Killed), transaction.atomic():
        assert answer_log.settle() == 1
        raise Killed
    assert (waiting(), Answer.objects.count()) == (1, 0)

    answer_log.settle()
    assert Answer.objects.get().pk == made.pk
    assert abs(Answer.objects.get().created_at - made.created_at) < timedelta(milliseconds=2)


def test_an_answer_that_redis_does_not_take_is_in_the_database_at_once(as_viewer, live, monkeypatch):
    def broken(ledger):
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(Ledger, "write", broken)
    answer = ask(as_viewer)
    assert Answer.objects.get().pk == answer["answer"]


def test_what_an_answer_refers_to_may_have_gone_and_what_cannot_be_read_holds_nobody_up(live, viewer):
    gone = making.version("gone")
    conversation = Conversation.objects.create(user=viewer, title="t")
    log(gone)
    connection().xadd(names.ANSWER_LOG, {"row": "{"})
    kept = log(live, conversation=conversation, user=viewer)
    gone.delete()
    viewer.delete()

    answer_log.settle()

    row = Answer.objects.get()
    assert (row.pk, row.conversation_id, row.user_id) == (kept.pk, None, None)
    assert waiting() == 0


@pytest.mark.parametrize(
    ("kinds", "said", "kept"),
    [
        (["email"], "write to eve.x@mail.example, or call +86 138 0013 8000", "write to [email], or call +86 138 0013 8000"),
        (["phone"], "call +86 138 0013 8000 or (030) 1234567 by 1859", "call [phone] or [phone] by 1859"),
        (["card", "phone"], "4111 1111 1111 1111, not 12", "[card], not 12"),
        (["ip"], "from 192.168.0.1 on 3.11", "from [ip] on 3.11"),
        ([], "eve@mail.example has PIN-77", "eve@mail.example has PIN-77"),
    ],
)
def test_what_is_not_to_be_kept_is_not_in_the_row(live, settings, kinds, said, kept):
    settings.REDACT = kinds
    log(live, prompt=said, text=said, messages=[{"role": "user", "content": said}])
    answer_log.settle()
    row = Answer.objects.get()
    assert (row.prompt, row.text, row.messages[0]["content"]) == (kept, kept, kept)


def test_a_pattern_of_ones_own_and_pictures_are_left_out_too(live, settings):
    settings.REDACT, settings.REDACT_PATTERN = ["picture"], r"PIN-\d+"
    log(live, text="it is PIN-77", messages=[{"role": "user", "content": "PIN-1", "image": "data:…"}])
    answer_log.settle()
    row = Answer.objects.get()
    assert (row.text, row.messages) == ("it is [redacted]", [{"role": "user", "content": "[redacted]"}])


def test_old_answers_are_forgotten_but_for_those_somebody_rated(live, settings):
    old, rated, new = log(live), log(live), log(live)
    answer_log.settle()
    Answer.objects.exclude(pk=new.pk).update(created_at=timezone.now() - timedelta(days=8))
    Feedback.objects.create(answer_id=rated.pk, rating=5)

    assert answer_log.forget_old() == 0
    settings.ANSWERS_KEPT_DAYS = 7
    assert answer_log.forget_old() == 1
    assert set(Answer.objects.values_list("pk", flat=True)) == {rated.pk, new.pk}
    assert old.pk
