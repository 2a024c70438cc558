"""A web process takes in as many questions as it has threads for, and tells the rest at once when to come back."""

import json
import time
from collections.abc import Iterator

import pytest

from apps.monitoring import buckets, names
from apps.monitoring.tally import tally
from apps.redis import connection
from apps.serving import door as doors
from apps.serving import flight
from apps.serving.answer_log import answers as logged
from apps.serving.room import FULL_SECONDS, Room

pytestmark = pytest.mark.django_db
PATHS = ["/api/v1/generate/", "/api/v1/chat/", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


@pytest.fixture
def full(monkeypatch) -> Iterator[Room]:
    room = Room(1, 1)
    assert room.enter() is not None
    monkeypatch.setattr(doors, "room", room)
    yield room
    tally.write()  # now, and not in the middle of another test


def ask(client, path: str = PATHS[0]):
    return client.post(path, {"prompt": "What is water?", "message": "What is water?", "messages": [{"role": "user", "content": "What is water?"}]})


@pytest.mark.parametrize("path", PATHS)
def test_a_full_process_answers_429_and_when_to_come_back(as_viewer, live, full, path):
    response = ask(as_viewer, path)

    assert response.status_code == 429
    assert int(response["Retry-After"]) >= 1
    told = response.json()
    assert (told["error"]["code"] if path.startswith("/v1/") else told["status"]) in (429, "rate_limit_exceeded")
    assert not logged().exists()


def test_a_refusal_has_the_request_s_id(as_viewer, live, full):
    response = as_viewer.post(PATHS[0], {"prompt": "x"}, headers={"X-Request-Id": "from-a-client-7"})

    assert response["X-Request-Id"] == "from-a-client-7"
    assert response.json()["request_id"] == "from-a-client-7"


def test_pages_and_everything_else_come_in_all_the_same(as_viewer, live, full):
    assert as_viewer.get("/login/").status_code == 200
    assert as_viewer.get("/api/v1/model-versions/").status_code == 200


def test_who_leaves_makes_room_whether_answered_or_not(as_viewer, live, full):
    full.leave(0.0)

    assert ask(as_viewer).status_code == 200
    assert as_viewer.post(PATHS[0], {}).status_code == 400
    assert as_viewer.post(PATHS[0], {"prompt": "x", "version": "none"}).status_code == 404
    assert ask(as_viewer).status_code == 200
    assert full.inside == 0


def test_a_stream_keeps_its_place_until_it_ends(as_viewer, live, full):
    full.leave(0.0)
    pieces = iter(ask(as_viewer, PATHS[1]).streaming_content)
    next(pieces)

    assert ask(as_viewer).status_code == 429
    list(pieces)
    assert ask(as_viewer).status_code == 200


def test_the_time_to_come_back_is_what_the_last_answers_took():
    now = [0.0]
    room = Room(40, 40, clock=lambda: now[0])
    came = [room.enter() for _ in range(40)]
    assert room.enter() is None
    now[0] = 3.2
    for at in came:
        room.leave(at)

    assert room.wait_seconds() == 4


def test_one_process_takes_in_what_the_others_leave_and_its_share_while_the_portal_is_full():
    now = [0.0]
    room = Room(6, 3, clock=lambda: now[0])
    came = [room.enter() for _ in range(4)]
    assert None not in came

    room.portal_is_full()
    assert room.enter() is None
    for at in came[:2]:
        room.leave(at)
    assert room.enter() is not None
    assert room.enter() is None
    now[0] = FULL_SECONDS
    assert [room.enter() is not None for _ in range(4)] == [True, True, True, False]


def test_refusals_are_counted_apart_from_requests_and_from_errors(as_viewer, live, full):
    ask(as_viewer)
    ask(as_viewer)
    full.leave(0.0)
    ask(as_viewer)
    tally.write()

    now = int(time.time())
    seen = buckets.read_by_version(now - 60, now)[buckets.ALL]
    assert (seen.refused, seen.requests, seen.errors, sum(seen.latency.values())) == (2, 1, 0, 1)


def test_a_full_queue_is_a_refusal_and_no_error_and_from_then_on_said_at_the_door(as_viewer, live, monkeypatch):
    room = Room(40, 0, clock=lambda: 0.0)  # the portal is taken for full for two seconds from now, and now stays
    monkeypatch.setattr(doors, "room", room)
    monkeypatch.setattr(flight, "room", room)
    monkeypatch.setattr("django.conf.settings.MAX_IN_FLIGHT", 1)
    connection().zadd(names.IN_FLIGHT, {json.dumps("another"): 9e9})

    assert ask(as_viewer).status_code == 429
    assert room.enter() is None

    tally.write()
    now = int(time.time())
    seen = buckets.read_by_version(now - 60, now)[live.pk]
    assert (seen.refused, seen.requests, seen.errors) == (1, 0, 0)
