"""Another server's model as a version: connected by operators, asked like any other, and neither trained nor compressed."""

import json

import pytest

from apps.accounts.models import AuditEntry
from apps.accounts.problems import Problem
from apps.jobs.models import Job
from apps.registry.models import ModelVersion
from apps.registry.upstream_access import health_of
from tests.apps import making
from tests.upstream_server import KEY, Server
from workers.tasks.answers import engines
from workers.tasks.engines import open_version

pytestmark = pytest.mark.django_db


@pytest.fixture
def server(monkeypatch, settings):
    monkeypatch.setenv("DSPORTAL_UPSTREAM_KEY_TESTS", KEY)
    made = Server()
    settings.UPSTREAM_HOSTS = [f"127.0.0.1:{made.port}"]
    made.start()
    yield made
    made.kill()


def asked(server: Server, **more) -> dict:
    return {"name": "words", "base_url": f"http://127.0.0.1:{server.port}/v1", "model": "words", "key": "tests", **more}


def connect(client, server: Server, **more) -> ModelVersion:
    response = client.post("/api/v1/upstreams/", asked(server, **more))
    assert response.status_code == 201, response.content
    return ModelVersion.objects.get(pk=response.json()["id"])


def test_an_operator_connects_a_model_and_the_key_is_nowhere(as_operator, server):
    version = connect(as_operator, server)
    assert (version.kind, version.config) == ("upstream", {"max_seq_len": 4096})
    row = as_operator.get(f"/api/v1/upstreams/{version.pk}/").json()
    assert row["upstream"] == {"base_url": f"http://127.0.0.1:{server.port}/v1", "model": "words", "key": "tests"}
    assert row["health"] is None
    assert [entry["id"] for entry in as_operator.get("/api/v1/upstreams/").json()["results"]] == [version.pk]
    file = as_operator.get(f"/api/v1/model-versions/{version.pk}/files/upstream.json")
    shown = [b"".join(file.streaming_content).decode(), json.dumps(row), json.dumps(list(AuditEntry.objects.values("before", "after")))]
    assert all("tests" in text and KEY not in text for text in shown)
    assert AuditEntry.objects.filter(action="version.connect", object_id=version.pk).exists()


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"model": "other"}, "model", "it has: words"), ({"key": ""}, "key", "refuses the key"), ({"key": "nobody"}, "key", "DSPORTAL_UPSTREAM_KEY_NOBODY"),
        ({"key": KEY.upper()}, "key", "never the key"), ({"base_url": "http://169.254.169.254/latest"}, "base_url", "DSPORTAL_UPSTREAM_HOSTS"),
        ({"base_url": "file:///etc/passwd"}, "base_url", "http://host:8000/v1"), ({"name": ""}, None, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_at_its_field(as_operator, server, change, field, said):
    refused = as_operator.post("/api/v1/upstreams/", asked(server, **change))
    assert refused.status_code == 400
    assert field is None or said in refused.json()["detail"]
    assert not ModelVersion.objects.exists()


def test_viewers_may_look_and_not_connect(as_viewer, server):
    assert as_viewer.post("/api/v1/upstreams/", asked(server)).status_code == 403
    assert as_viewer.get("/api/v1/upstreams/").status_code == 200


def test_it_is_asked_like_any_other_version_and_its_health_is_told(as_operator, server, answers_with, db):
    version = connect(as_operator, server)
    engines.hold(version.pk, open_version(version))
    try:
        body = {"model": "words", "messages": [{"role": "user", "content": "one two three"}], "temperature": 0}
        answer = as_operator.post("/v1/chat/completions", body).json()
        assert answer["choices"][0]["message"]["content"] == "one two three"
        assert answer["usage"]["prompt_tokens"] == 7
        stream = as_operator.stream(as_operator.post("/v1/chat/completions", {**body, "max_tokens": 2, "stream": True, "logprobs": True}))
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in stream[:-1]) == "one two"
        engines.count()
        assert health_of([version])[version.pk].state == "closed"
        refused = as_operator.post("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": "refuse"}]})
        assert (refused.status_code, "max_tokens is too large" in refused.json()["error"]["message"]) == (400, True)
        server.kill()
        failed = as_operator.post("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": "are you there"}]})
        assert failed.status_code == 503
        assert failed.json()["error"]["type"] == "server_error"
    finally:
        engines.let_go(version.pk)


def test_a_host_that_is_allowed_no_more_is_asked_no_more(as_operator, server, settings):
    version = connect(as_operator, server)
    settings.UPSTREAM_HOSTS = []
    with pytest.raises(Problem, match="DSPORTAL_UPSTREAM_HOSTS"):
        open_version(version)


@pytest.mark.parametrize("method", ["int8", "prune", "distill", "onnx", "policy"])
def test_compressing_it_is_refused_before_anything_is_queued(as_operator, server, method):
    version = connect(as_operator, server)
    refused = as_operator.post("/api/v1/compressions/", {"model_version": version.pk, "method": method, "sparsity": 0.5})
    assert refused.status_code == 409
    assert "no weights here to compress" in refused.json()["detail"]
    assert not Job.objects.exists()


def test_training_from_it_is_refused_before_anything_is_queued(as_operator, operator, server):
    dataset, version = making.processed(operator), connect(as_operator, server, check=False)
    before = Job.objects.filter(kind="training").count()
    refused = as_operator.post("/api/v1/training-jobs/", {"dataset": dataset.pk, "preset": "nano", "steps": 1, "parent": version.pk})
    assert refused.status_code == 400
    assert "no weights here to go on from" in refused.json()["detail"]
    assert Job.objects.filter(kind="training").count() == before


def test_the_page_connects_keeps_what_was_typed_and_shows_whether_it_answers(client, operator, server):
    client.force_login(operator)
    given = asked(server)
    page = client.post("/models/upstream/", {**given, "model": "other"})
    assert page.status_code == 400
    assert b"it has: words" in page.content
    assert given["base_url"].encode() in page.content
    made = client.post("/models/upstream/", given)
    version = ModelVersion.objects.get(name="words")
    assert made["Location"] == f"/models/{version.pk}/"
    for path in (f"/models/{version.pk}/", f"/models/{version.pk}/upstream/", "/models/upstream/", "/models/upstream/?fragment=rows"):
        shown = client.get(path).content.decode()
        assert given["base_url"] in shown
        assert "not asked yet" in shown
        assert KEY not in shown
    assert b'href="/models/upstream/"' in client.get("/models/").content


def test_its_size_is_not_compared_with_those_of_models_here(client, as_operator, operator, server):
    client.force_login(operator)
    making.evaluated(connect(as_operator, server), making.processed(operator).current_run.evaluation_sets.get(), bleu=90.0)
    assert "No version has been evaluated yet" in client.get("/compression/chart/").json()["empty"]
