"""Where the time of one request went: told by web and worker, kept for a while, seen by whoever may."""

import gzip
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.test import Client
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from apps.monitoring import names
from apps.monitoring.traces import journey, store, telling
from apps.redis import connection
from apps.serving.answer_log import answers as logged

pytestmark = pytest.mark.django_db


def ask(client, prompt: str = "What is water?", **more):
    response = client.post("/api/v1/generate/", {"prompt": prompt, **more})
    telling.flush()
    return response


def followed(response):
    """Once the worker's part is written as well: it tells of the delivery when the answer may have been read."""
    until = time.monotonic() + 20
    while not ((trace := store.find(response["X-Request-Id"])) and "deliver" in [step.name for step in trace.steps]):
        assert time.monotonic() < until, "the worker told nothing of the answer's delivery"
        time.sleep(0.01)
        telling.flush()
    telling.flush()  # to a collector too: the store may have been told of it by its own thread
    return response


def phases(trace: dict) -> list[tuple[str, str]]:
    return [(phase["phase"], phase["about"].get("what") or phase["about"].get("where") or "") for phase in trace["phases"]]


def test_a_request_is_followed_from_the_edge_through_the_queue_to_the_engine_and_back(as_viewer, viewer, live):
    response = followed(ask(as_viewer))

    trace = as_viewer.get(f"/api/v1/traces/{response['X-Request-Id']}/").json()
    assert phases(trace) == [
        ("database", "version"), ("cache", ""), ("queue", "broker"), ("queue", "engine"), ("prefill", ""), ("decode", ""), ("deliver", ""),
        ("database", "answer"),
    ]  # fmt: skip
    answer = response.json()
    assert (trace["answers"], trace["user"], trace["tenant"], trace["version"], trace["status"]) == ([answer["answer"]], "viewer", "token", "v1", 200)
    about = {phase["phase"]: phase["about"] for phase in trace["phases"]}
    assert about["prefill"]["tokens"] == answer["usage"]["prompt_tokens"]
    assert about["decode"]["tokens"] == answer["usage"]["completion_tokens"]
    ends = {phase["phase"]: phase["started_ms"] + phase["took_ms"] for phase in trace["phases"]}
    ends.pop("deliver")  # the worker notes its end when the answer may have been read already
    assert max(ends.values()) <= trace["took_ms"]
    engine = [phase for phase in trace["phases"] if phase["phase"] in ("prefill", "decode")]
    assert engine[0]["started_ms"] + engine[0]["took_ms"] == pytest.approx(engine[1]["started_ms"], abs=0.01)


def test_an_answer_from_the_cache_has_no_engine_in_it(as_viewer, live, settings):
    settings.ROUTES_KEPT_SECONDS = 3600.0  # after two the version would be asked of the database again, on a busy machine before the second question
    ask(as_viewer)
    answer = ask(as_viewer).json()["answer"]

    assert phases(as_viewer.get(f"/api/v1/traces/{answer}/").json()) == [("cache", ""), ("database", "answer")]


def test_a_stream_is_followed_to_its_last_piece(as_viewer, live):
    response = as_viewer.post(
        "/v1/chat/completions", {"model": "dsportal", "stream": True, "messages": [{"role": "user", "content": "What is ice?"}]}
    )
    as_viewer.stream(response)
    response.close()
    followed(response)

    trace = as_viewer.get(f"/api/v1/traces/{response['X-Request-Id']}/").json()
    assert trace["path"] == "/v1/chat/completions"
    assert "decode" in [phase["phase"] for phase in trace["phases"]]


def test_a_refusal_is_followed_too(as_viewer):
    response = ask(as_viewer, version="nobody")

    trace = as_viewer.get(f"/api/v1/traces/{response['X-Request-Id']}/").json()
    assert (trace["status"], trace["answers"]) == (404, [])


def test_one_sees_ones_own_and_operators_see_all(as_viewer, as_operator, person, live):
    from tests.apps.conftest import Api

    ident = ask(as_viewer)["X-Request-Id"]
    other = Api(person("viewer", "somebody"))

    assert other.get(f"/api/v1/traces/{ident}/").status_code == 404
    assert other.get("/api/v1/traces/").json()["results"] == []
    assert as_operator.get(f"/api/v1/traces/{ident}/").status_code == 200
    assert [row["request_id"] for row in as_operator.get("/api/v1/traces/").json()["results"]] == [ident]


def test_the_list_goes_on_where_it_stopped_and_narrows_down(as_viewer, live):
    asked = [ask(as_viewer, f"What is {n}?")["X-Request-Id"] for n in range(3)]
    ask(as_viewer, version="nobody")

    first = as_viewer.get("/api/v1/traces/?page_size=2&version=v1").json()
    second = as_viewer.get(first["next"]).json()

    assert [row["request_id"] for row in first["results"] + second["results"]] == asked[::-1]
    assert second["next"] is None
    assert as_viewer.get("/api/v1/traces/?slower_than_ms=60000").json()["results"] == []
    times = [datetime.fromisoformat(row["started_at"]) for row in first["results"]]
    assert times == sorted(times, reverse=True)


def test_they_are_bounded_in_number_and_in_time(as_viewer, live, settings, monkeypatch):
    settings.TRACES_KEPT, settings.TRACE_SECONDS = 2, 100
    monkeypatch.setattr(store, "NOTABLE_MS", float("inf"))  # a slow one would have room of its own
    asked = [followed(ask(as_viewer, f"What is {n}?"))["X-Request-Id"] for n in range(4)]
    r = connection()

    kept = [ident for ident in asked if store.find(ident)]
    assert kept == asked[2:]
    keys = [*r.scan_iter(names.TRACE.format(trace="*")), *r.scan_iter(names.TRACE_OF.format(name="*"))]
    assert all(0 < r.ttl(key) <= 100 for key in keys)


def test_quick_answers_beyond_the_allowance_are_not_told(as_viewer, live, settings, monkeypatch):
    ask(as_viewer)
    settings.TRACES_PER_SECOND = 1
    monkeypatch.setattr(journey, "_allowance", journey.Allowance(clock=lambda: 0.0))  # nothing of this second's is taken yet, and it does not end
    monkeypatch.setattr(journey, "NOTABLE_MS", float("inf"))  # slow ones are always told
    for _ in range(20):
        ask(as_viewer)

    assert len(list(store.newest())) - 1 == 1

    settings.TRACES_PER_SECOND = 0
    before = len(list(store.newest()))
    ask(as_viewer, "What is steam?")
    assert len(list(store.newest())) == before


def test_the_page_draws_the_phases_and_knows_who_may_look(viewer, operator, as_viewer, live, person):
    answer = followed(ask(as_viewer)).json()["answer"]
    reader, stranger = Client(), Client()
    reader.force_login(viewer)
    stranger.force_login(person("viewer", "somebody"))

    page = reader.get(f"/monitoring/requests/{answer}/").content.decode()
    assert page.count("waterfall-row") == 8
    assert "Decode: writing the answer" in page
    assert "style=" not in page.split("<main")[1]
    assert stranger.get(f"/monitoring/requests/{answer}/").status_code == 404
    assert Client().get(f"/monitoring/requests/{answer}/").status_code == 302

    connection().flushall()
    forgotten = reader.get(f"/monitoring/requests/{answer}/")
    assert forgotten.status_code == 404
    assert logged().get(pk=answer).prompt in forgotten.content.decode()


def test_the_slowest_requests_lead_to_their_phases(as_operator, operator, live):
    answer = ask(as_operator).json()["answer"]
    client = Client()
    client.force_login(operator)

    assert f"/monitoring/requests/{answer}/" in client.get("/monitoring/").content.decode()


class Collector(BaseHTTPRequestHandler):
    """An OTLP collector that keeps what it is sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.got = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_collector_gets_them_only_where_the_environment_names_one(as_viewer, live, collector, settings, monkeypatch):
    monkeypatch.setattr(telling, "_made", None)
    followed(ask(as_viewer))
    assert collector.got == []

    address = f"http://127.0.0.1:{collector.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    settings.OTLP_ENDPOINT = address
    monkeypatch.setattr(telling, "_made", None)
    response = followed(ask(as_viewer, "What is ice?"))

    assert {path for path, _body in collector.got} == {"/v1/traces"}
    sent = [ExportTraceServiceRequest.FromString(body) for _path, body in collector.got]
    spans = [span for each in sent for resource in each.resource_spans for scope in resource.scope_spans for span in scope.spans]
    (root,) = [span for span in spans if span.name == "request"]
    assert {span.trace_id for span in spans} == {root.trace_id}
    assert {span.parent_span_id for span in spans if span.name != "request"} == {root.span_id}
    assert {"queue", "prefill", "decode"} <= {span.name for span in spans}
    assert store.find(response["X-Request-Id"])  # as before
