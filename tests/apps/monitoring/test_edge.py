"""What a request took is what its asker waited: from the web server's call to the end of the answer."""

import time
from io import BytesIO

import pytest
from django.http import HttpResponse, StreamingHttpResponse

from apps.monitoring import buckets
from apps.monitoring.buckets import Bucket
from apps.monitoring.histogram import percentile
from apps.monitoring.tally import tally
from apps.monitoring.traces.edge import ARRIVED, Edge

pytestmark = pytest.mark.django_db
WAITED_MS = 2000.0


def seen() -> Bucket:
    tally.write()
    now = int(time.time())
    return buckets.read_by_version(now - 60, now)[buckets.ALL]


def ask(client, path: str = "/api/v1/generate/", **asked):
    """That arrived a while ago, and has waited for its turn since."""
    return client.post(path, {"prompt": "What is water?", **asked}, **{ARRIVED: time.monotonic() - WAITED_MS / 1000})


def test_the_wait_for_a_turn_counts_in_the_answer_in_the_charts_and_as_a_phase(as_viewer, live):
    answer = ask(as_viewer).json()

    bucket = seen()
    assert answer["latency_ms"] > WAITED_MS
    assert percentile(bucket.latency, 0.99) > 0.99 * WAITED_MS
    assert bucket.phases["turn"] > 0.99 * WAITED_MS * 1000


def test_a_stream_is_counted_once_when_its_last_piece_has_left(as_viewer, live):
    response = as_viewer.post(
        "/v1/chat/completions", {"model": "dsportal", "stream": True, "messages": [{"role": "user", "content": "What is ice?"}]}
    )
    assert not seen().requests
    as_viewer.stream(response)
    response.close()
    response.close()

    assert seen().requests == 1


def test_several_answers_to_one_request_are_counted_each_and_took_as_long_as_it(as_viewer, live):
    asked = {"model": "dsportal", "n": 3, "temperature": 1.0, "messages": [{"role": "user", "content": "What is ice?"}]}
    assert len(ask(as_viewer, "/v1/chat/completions", **asked).json()["choices"]) == 3

    bucket = seen()
    assert (bucket.requests, len(bucket.latency)) == (3, 1)


@pytest.mark.parametrize("body", [HttpResponse(b"whole"), StreamingHttpResponse(iter([b"piece by", b" piece"]))])
def test_whole_answers_go_back_as_a_list_and_closed_and_streams_as_they_are(body):
    environ = {"REQUEST_METHOD": "GET", "wsgi.input": BytesIO()}

    given = Edge(lambda environ, start_response: body)(environ, lambda *told: None)

    assert time.monotonic() - environ[ARRIVED] < 60
    if body.streaming:
        assert (given, body.closed) == (body, False)
    else:
        assert (given, body.closed) == ([b"whole"], True)
