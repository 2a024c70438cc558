"""What nobody should send: always a clear 4xx as a problem document, never a fault of ours."""

import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from tests.apps import making

pytestmark = pytest.mark.django_db

POSTS = [
    "/api/v1/datasets/", "/api/v1/training-jobs/", "/api/v1/model-versions/", "/api/v1/compressions/", "/api/v1/experiments/", "/api/v1/feedback/",
    "/api/v1/generate/", "/api/v1/chat/", "/api/v1/tokens/", "/api/v1/users/",
]  # fmt: skip


def is_a_problem(response, status=(400,)) -> dict:
    assert response.status_code in status, response.content[:300]
    assert response["Content-Type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["title"] and body["detail"] and body["request_id"]
    return body


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [
    b"", b"{", b"nonsense", b"\xff\xfe\x00", b"[]", b"null", b"3", b'"text"', b"[" * 200_000, b'{"name": NaN}', b'{"name": ' + b"9" * 5000 + b"}",
], ids=["empty", "half", "words", "bytes", "list", "null", "number", "string", "deep", "nan", "digits"])  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(as_admin, path, body):
    is_a_problem(as_admin.post(path, body, content_type="application/json"))


@pytest.mark.parametrize("path", POSTS)
def test_a_body_of_a_foreign_type_is_refused(as_admin, path):
    is_a_problem(as_admin.post(path, "<a/>", content_type="application/xml"), (415,))


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("value", [None, "", " ", [], {}, -1, 1e308, True, "\0", "\ud800", "x" * 200_000], ids=repr)
def test_fields_that_hold_what_they_cannot_are_refused(as_admin, path, value):
    fields = ("name", "records", "dataset", "preset", "path", "model_version", "method", "control", "treatment", "answer", "rating", "prompt", "message",
              "username", "password")  # fmt: skip
    response = as_admin.post(path, dict.fromkeys(fields, value))

    numbers_are_texts = path.endswith(("tokens/", "generate/", "chat/")) and value in (-1, 1e308)  # and then are asked as any other
    is_a_problem(response, (400, 404, 409)) if not numbers_are_texts else None


@pytest.mark.parametrize(("field", "value"), [
    ("max_tokens", 0), ("max_tokens", 10**9), ("max_tokens", "many"), ("max_tokens", 1.5), ("temperature", -1), ("temperature", 2.1),
    ("temperature", "hot"), ("top_p", 0), ("top_p", 1.1), ("top_k", -1), ("seed", -1), ("seed", 2**40), ("stop", "x" * 201), ("stop", ["x"] * 9),
    ("stop", [""]), ("prompt", "x" * 100_000), ("prompt", None), ("prompt", 3 * [1]), ("prompt", "\0"),
])  # fmt: skip
def test_a_question_with_a_bad_field_names_it(as_viewer, field, value):
    making.version("v1", state="live")
    body = is_a_problem(as_viewer.post("/api/v1/generate/", {"prompt": "What is water?", field: value}))

    assert field in body["errors"]


def test_an_unknown_version_is_not_found(as_viewer):
    assert "version" in is_a_problem(as_viewer.post("/api/v1/generate/", {"prompt": "hi", "version": "v99"}), (404,))["errors"]


FILES = {
    "empty.jsonl": b"", "blank.txt": b" \n\n ", "binary.jsonl": bytes(range(256)) * 40, "image.csv": b"\x89PNG\r\n\x1a\n" + b"\0" * 500,
    "no-fields.jsonl": b'{"a": 1}\n{"b": 2}\n', "list.jsonl": b"[1, 2]\n", "twice.csv": b"text,text\na,b\n", "unknown.csv": b"foo,bar\n1,2\n",
    "broken.parquet": b"PAR1" + b"\0" * 100 + b"PAR1", "short.parquet": b"PAR1", "deep.jsonl": b"[" * 50_000 + b"\n",
    "one-line.jsonl": b'{"text": "' + b"x" * (20 * 1024**2), "nul.txt": b"\0" * 1000,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_refused_at_its_field(as_operator, name):
    body = is_a_problem(as_operator.upload("/api/v1/datasets/", {"name": "bad", "file": SimpleUploadedFile(name, FILES[name])}))

    assert "file" in body["errors"]


@pytest.mark.parametrize("name", ["光合作用" * 60 + ".jsonl", "...", "a/../../b.jsonl", "con\x01trol.jsonl", ".hidden"])
def test_a_file_may_have_any_name(as_operator, name):
    file = SimpleUploadedFile("data.jsonl", b'{"text": "Water is wet."}\n')
    file._name = name
    response = as_operator.upload("/api/v1/datasets/", {"name": "named", "file": file})

    assert response.status_code in (201, 400)


def test_a_latin1_file_is_read_or_refused_but_not_a_fault(as_operator):
    file = SimpleUploadedFile("latin.txt", "Café und Straße sind Wörter.\n".encode("latin-1") * 20)

    assert as_operator.upload("/api/v1/datasets/", {"name": "latin", "file": file}).status_code in (201, 400)


def test_a_file_beyond_the_limit_is_too_large(as_operator, settings):
    settings.MAX_UPLOAD_BYTES = 1000
    response = as_operator.upload("/api/v1/datasets/", {"name": "big", "file": SimpleUploadedFile("a.txt", b"water is wet\n" * 100)})

    assert "larger" in is_a_problem(response, (413,))["detail"]


def test_a_body_announced_beyond_the_limit_is_refused_before_it_is_read(as_operator, settings):
    settings.MAX_UPLOAD_BYTES = 1000
    response = as_operator.upload("/api/v1/datasets/", {"name": "big", "file": SimpleUploadedFile("a.txt", b"x" * 2_000_000)})

    is_a_problem(response, (413,))


def test_json_beyond_the_limit_is_too_large(as_operator, settings):
    settings.MAX_JSON_BYTES = 1000

    is_a_problem(as_operator.post("/api/v1/datasets/", {"name": "big", "records": [{"text": "x" * 2000}]}), (413,))


@pytest.mark.parametrize("records", [[], [1], ["text"], [None], [[]], {"text": "a"}, "text", [{}], [{"foo": "bar"}], [{"text": ""}]], ids=json.dumps)
def test_records_must_be_objects_with_known_fields(as_operator, records):
    is_a_problem(as_operator.post("/api/v1/datasets/", {"name": "bad", "records": records}))


@pytest.mark.parametrize("query", [
    "status=lost", "dataset=nobody", "cursor=!!!", "cursor=cD0A", "cursor=cD3_", "cursor=cD1hYmM", "page_size=0", "page_size=x", "kind=%00", "status=%ff", "since=yesterday",
])  # fmt: skip
@pytest.mark.parametrize(
    "path", ["datasets", "training-jobs", "jobs", "model-versions", "audit", "feedback", "answers", "alerts", "experiments", "users"]
)
def test_a_list_takes_any_query_without_a_fault(as_admin, path, query):
    assert as_admin.get(f"/api/v1/{path}/?{query}").status_code in (200, 400, 404)


@pytest.mark.parametrize("query", ["window=0", "window=-1", "window=999999999", "step=0", "window=x", "step=1e9", "version=nobody"])
def test_a_bad_window_of_the_charts_is_refused(as_viewer, query):
    is_a_problem(as_viewer.get(f"/api/v1/metrics/timeseries?{query}"), (400, 404))


@pytest.mark.parametrize("query", [
    "parameters=0", "parameters=-5", "parameters=nan", "parameters=inf", "parameters=1e40", "parameters=x", "preset=nobody", "version=nobody", "gpus=0",
    "gpus=1e9", "zero_stage=4", "precision=int3", "precision=int8", "purpose=sell", "qps=0&purpose=serve", "p99_ms=nan&purpose=serve", "tokens=nan",
    "batch=0", "sequence=-1", "active_parameters=nan&parameters=1e9",
])  # fmt: skip
def test_a_bad_question_to_the_hardware_advisor_is_refused(as_viewer, query):
    is_a_problem(as_viewer.get(f"/api/v1/advisor/hardware/?{query}"), (400, 404))


@pytest.mark.parametrize("path", ["/api/v1/datasets/%00/", "/api/v1/datasets/%ff/", "/api/v1/nothing/", f"/api/v1/jobs/{'x' * 300}/"])
def test_an_address_that_leads_nowhere_is_a_problem_document(as_admin, path):
    is_a_problem(as_admin.get(path), (404,))


@pytest.mark.parametrize("token", ["", "x", "é", "a b", "\x80" * 40])
def test_a_wrong_token_is_refused(anonymous, token):
    is_a_problem(anonymous.get("/api/v1/datasets/", headers={"Authorization": f"Bearer {token}"}), (401,))
