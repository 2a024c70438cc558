import pytest
from django.conf import settings
from django.test import Client

from apps.serving.answer_log import answers as logged
from apps.serving.models import Conversation

pytestmark = pytest.mark.django_db


def say(client, message="What is water?", **more):
    return client.stream(client.post("/api/v1/chat/", {"message": message, **more}))


def test_a_turn_streams_who_answers_then_its_text_then_its_figures(as_viewer, live):
    first, *pieces, last = say(as_viewer)

    assert first["version_name"] == "v1"
    assert Conversation.objects.get().pk == first["conversation"]
    assert "".join(piece["text"] for piece in pieces) == "You asked: What is water?"
    assert len(pieces) >= 1
    assert last["done"] is True
    assert last["usage"]["completion_tokens"] > 0
    assert logged().get().pk == first["answer"]


def test_the_next_turn_sends_the_whole_conversation(as_viewer, live):
    conversation = say(as_viewer)[0]["conversation"]
    answer = say(as_viewer, "And ice?", conversation=conversation)[0]["answer"]

    assert [m["content"] for m in logged().get(pk=answer).messages] == ["What is water?", "You asked: What is water?", "And ice?"]


def test_the_oldest_turns_are_left_out_where_the_model_cannot_read_them_all(as_viewer, live):
    conversation = say(as_viewer, "the first " * 20)[0]["conversation"]
    for n in range(6):
        events = say(as_viewer, f"question {n} " * 12, conversation=conversation)
        assert events[-1].get("done"), events[-1]

    messages = logged().get(pk=events[0]["answer"]).messages
    assert messages[0]["role"] == "user"
    assert "the first" not in messages[0]["content"]
    assert messages[-1]["content"].startswith("question 5")


def test_an_answer_is_made_again_with_the_same_question_and_not_from_the_cache(as_viewer, live):
    first = say(as_viewer)[0]

    events = say(as_viewer, "", conversation=first["conversation"], replaces=first["answer"])

    assert (events[-1]["cached"], events[0]["conversation"]) == (False, first["conversation"])
    assert logged().get(pk=events[0]["answer"]).messages == logged().get(pk=first["answer"]).messages


def test_a_stopped_stream_leaves_the_answer_as_stopped(as_viewer, live):
    response = as_viewer.post("/api/v1/chat/", {"message": "What is water?", "temperature": 0.5})
    events = iter(response.streaming_content)
    next(events), next(events)
    response._iterator.close()  # as the web server does when its client goes away

    assert logged().get().status == "cancelled"


def test_an_error_in_the_middle_is_an_event(as_viewer, live):
    *_, last = say(as_viewer, "word " * 2000)

    assert last["status"] == 400
    assert "tokens" in last["error"]


def test_nobody_goes_on_with_anothers_conversation(as_viewer, as_operator, live):
    conversation = say(as_viewer)[0]["conversation"]

    assert as_operator.post("/api/v1/chat/", {"message": "hi", "conversation": conversation}).status_code == 404
    assert as_operator.get(f"/api/v1/conversations/{conversation}/").status_code == 404
    assert as_operator.delete(f"/api/v1/conversations/{conversation}/").status_code == 404


def test_no_conversation_is_left_behind_where_nothing_can_answer(as_viewer):
    assert as_viewer.post("/api/v1/chat/", {"message": "hi"}).status_code == 503
    assert not Conversation.objects.exists()


def test_a_conversation_is_read_with_its_ratings_and_can_be_forgotten(as_viewer, live):
    first = say(as_viewer)[0]
    as_viewer.post("/api/v1/feedback/", {"answer": first["answer"], "rating": 4})

    turns = as_viewer.get(f"/api/v1/conversations/{first['conversation']}/").json()["turns"]

    assert [(turn["prompt"], turn["rating"]) for turn in turns] == [("What is water?", 4)]
    assert as_viewer.delete(f"/api/v1/conversations/{first['conversation']}/").status_code == 204
    assert as_viewer.get("/api/v1/conversations/").json()["results"] == []
    assert logged().get().conversation is None


def test_guests_chat_only_where_the_operator_opens_it(anonymous, live, monkeypatch):
    assert anonymous.post("/api/v1/chat/", {"message": "hi"}).status_code == 401

    monkeypatch.setattr(settings, "GUEST_CHAT", True)
    first = say(anonymous)[0]
    again = say(anonymous, "And ice?", conversation=first["conversation"])

    assert again[-1]["done"]
    assert anonymous.post("/api/v1/feedback/", {"answer": first["answer"], "rating": 5}).status_code == 201
    stranger = Client()
    rating = {"answer": first["answer"], "rating": 1}
    assert stranger.post("/api/v1/feedback/", rating, content_type="application/json").status_code == 404
    turn = {"message": "hi", "conversation": first["conversation"]}
    assert stranger.post("/api/v1/chat/", turn, content_type="application/json").status_code == 404


def test_a_browser_session_needs_its_csrf_token(viewer, live):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(viewer)

    assert browser.post("/api/v1/chat/", {"message": "hi"}, content_type="application/json").status_code == 403
