"""Batches: queued with what can be asked, run by the jobs worker, their answers a file to download."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile

from apps.accounts.models import AuditEntry
from apps.batches import services
from apps.batches.models import BatchJob
from apps.datasets.services import create_from_records
from apps.jobs.models import Job
from apps.jobs.runs import run_of, work_folder
from apps.jobs.services import claim_next
from tests.apps import making
from tests.upstream_server import KEY, Server
from workers.tasks import jobs as worker

pytestmark = pytest.mark.django_db
RECORDS = [{"prompt": "one", "id": "a"}, {"question": "two"}, {"text": "asks nothing"}, {"messages": [{"role": "user", "content": "three"}]}]
ENTRIES = [json.dumps(row) for row in RECORDS]


@pytest.fixture
def version(db):
    return making.version("v1", state="live")


@pytest.fixture
def elsewhere(as_operator, monkeypatch, settings):
    """Id of a version that another server holds, which the jobs worker's children can reach."""
    monkeypatch.setenv("DSPORTAL_UPSTREAM_KEY_TESTS", KEY)
    server = Server()
    settings.UPSTREAM_HOSTS, settings.JOB_NICENESS = [f"127.0.0.1:{server.port}"], 0
    server.start()
    try:
        place = {"name": "words", "base_url": f"http://127.0.0.1:{server.port}/v1", "model": "words", "key": "tests"}
        yield as_operator.post("/api/v1/upstreams/", place).json()["id"]
    finally:
        server.kill()


def answered(job: BatchJob) -> BatchJob:
    """As the child leaves it."""
    folder = work_folder(job) / "answers"
    folder.mkdir(parents=True)
    entries = [{"row": 0, "prompt": "one", "answer": "1"}, {"row": 1, "question": "two", "error": "the line is no JSON"}]
    (folder / "answers.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return making.complete(job, {"rows": 2, "answered": 1, "refused": 1, "prompt_tokens": 3, "completion_tokens": 1})


def test_records_become_a_queued_job_after_all_others_and_its_answers_a_download(as_operator, version):
    made = as_operator.post("/api/v1/batch-jobs/", {"model_version": version.pk, "records": RECORDS, "max_tokens": 32})
    assert made.status_code == 202, made.content
    row = made.json()
    assert (row["kind"], row["status"], row["answers_url"], row["title"]) == ("batch", "queued", None, "Answer prompts.jsonl with v1")
    job = BatchJob.objects.get(pk=row["id"])
    assert job.priority < 0
    spec = run_of("batch").prepare(job, work_folder(job)).spec
    assert [json.loads(line) for line in Path(spec["inputs"][0]).read_text().splitlines()] == RECORDS
    assert (spec["max_tokens"], spec["temperature"], spec["cache_bytes"]) == (32, 0, settings.ENGINE_CACHE_BYTES)
    assert as_operator.get(f"/api/v1/batch-jobs/{job.pk}/answers/").status_code == 409
    answered(job)
    done = as_operator.get(f"/api/v1/batch-jobs/{job.pk}/").json()
    assert done["result"]["answered"] == 1
    lines = b"".join(as_operator.get(done["answers_url"]).streaming_content).splitlines()
    assert [json.loads(line)["row"] for line in lines] == [0, 1]
    assert AuditEntry.objects.filter(action="batch.start", object_id=job.pk).exists()


def test_a_batch_whose_engine_this_machine_cannot_hold_is_refused(as_operator, version, monkeypatch):
    needed = services.memory_bytes(version)
    monkeypatch.setattr(services, "machine_bytes", lambda: needed)  # of which the rest of the portal needs a part
    refused = as_operator.post("/api/v1/batch-jobs/", {"model_version": version.pk, "records": RECORDS})
    assert refused.status_code == 400
    assert "an engine of its own" in refused.json()["detail"]
    assert not BatchJob.objects.exists()


def test_a_batch_takes_no_memory_that_is_not_free(as_operator, version, monkeypatch):
    job = BatchJob.objects.get(pk=as_operator.post("/api/v1/batch-jobs/", {"model_version": version.pk, "records": RECORDS}).json()["id"])
    monkeypatch.setattr(services, "free_bytes", lambda: services.memory_bytes(version) - 1)
    worker._run(claim_next(worker="here"))
    job.refresh_from_db()
    assert job.status == "failed"
    assert "memory is free; resume the job" in job.error
    monkeypatch.setattr(services, "free_bytes", lambda: services.memory_bytes(version))
    assert run_of("batch").prepare(job, work_folder(job)).argv


def test_a_file_or_the_questions_of_a_dataset_are_answered_too(as_operator, operator, version):
    file = SimpleUploadedFile("mine.jsonl", "\n".join(ENTRIES).encode())
    sent = as_operator.upload("/api/v1/batch-jobs/", {"model_version": version.pk, "file": file, "temperature": "0.5"})
    assert (sent.status_code, sent.json()["prompts_name"]) == (202, "mine.jsonl")
    dataset = create_from_records(name="questions", records=[{"question": "What is water?", "answer": "H2O."}], actor=operator)
    named = as_operator.post("/api/v1/batch-jobs/", {"model_version": version.pk, "dataset": dataset.pk}).json()
    job = BatchJob.objects.get(pk=named["id"])
    spec = run_of("batch").prepare(job, work_folder(job)).spec
    assert "What is water?" in Path(spec["inputs"][0]).read_text()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"records": [{"text": "x"}]}, "records"), ({"records": None}, "dataset"), ({"max_tokens": 0}, "max_tokens"), ({"temperature": 3}, "temperature"),
        ({"model_version": "01NOBODY"}, "model_version"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_before_it_is_queued(as_operator, version, change, field):
    asked = {"model_version": version.pk, "records": RECORDS, **change}
    refused = as_operator.post("/api/v1/batch-jobs/", {name: value for name, value in asked.items() if value is not None})
    assert refused.status_code in (400, 404)
    assert field in refused.content.decode()
    assert not Job.objects.exists()


def test_viewers_read_and_do_not_start(as_viewer, version):
    assert as_viewer.post("/api/v1/batch-jobs/", {"model_version": version.pk, "records": RECORDS}).status_code == 403
    assert as_viewer.get("/api/v1/batch-jobs/").status_code == 200


def test_the_jobs_worker_answers_a_batch_by_its_child_process(as_operator, elsewhere):
    made = as_operator.post("/api/v1/batch-jobs/", {"model_version": elsewhere, "records": RECORDS}).json()
    worker._run(claim_next(worker="tests"))
    job = BatchJob.objects.get(pk=made["id"])
    assert (job.status, job.error) == ("succeeded", "")
    lines = b"".join(as_operator.get(f"/api/v1/batch-jobs/{job.pk}/answers/").streaming_content).splitlines()
    assert [json.loads(line).get("answer") for line in lines] == ["one", "two", None, "three"]


def test_a_batch_stops_for_other_work_and_goes_on_after_it(as_operator, operator, elsewhere):
    made = as_operator.post("/api/v1/batch-jobs/", {"model_version": elsewhere, "records": RECORDS}).json()
    batch = claim_next(worker="tests")
    data = making.dataset(operator)
    other = as_operator.post(f"/api/v1/datasets/{data.pk}/process/").json()
    worker._run(batch)
    assert (batch.status, batch.message) == ("queued", "it made room for other work; goes on after it")
    assert claim_next(worker="tests").pk == other["id"]
    worker._run(claim_next(worker="tests"))
    done = as_operator.get(f"/api/v1/batch-jobs/{made['id']}/").json()
    assert (done["status"], done["result"]["answered"]) == ("succeeded", 3)


def test_the_page_starts_one_keeps_what_was_typed_and_shows_its_answers(client, operator, version):
    client.force_login(operator)
    assert b"No batch yet" in client.get("/batches/").content
    wrong = client.post("/batches/", {"version": version.pk, "max_tokens": 64, "temperature": 0, "system": "Be brief."})
    assert wrong.status_code == 400
    assert b"one of the two" in wrong.content
    assert b"Be brief." in wrong.content
    file = SimpleUploadedFile("mine.jsonl", "\n".join(ENTRIES).encode())
    made = client.post("/batches/", {"version": version.pk, "max_tokens": 64, "temperature": 0, "file": file})
    job = BatchJob.objects.get()
    assert made["Location"] == f"/batches/{job.pk}/"
    assert b"queued" in client.get(f"/batches/{job.pk}/").content
    assert client.get(f"/batches/{job.pk}/answers.jsonl").status_code == 404
    answered(job)
    page = client.get(f"/batches/{job.pk}/").content.decode()
    assert f'href="/batches/{job.pk}/answers.jsonl"' in page
    assert "the line is no JSON" in page
    assert b"mine.jsonl" in client.get("/batches/?fragment=rows").content
    assert b'href="/batches/"' in client.get("/models/").content


def test_a_jobs_child_stands_behind_those_who_answer_people():
    """In the order of the processor, and of those that the kernel ends where memory runs out."""
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        worker._lower_priority(child.pid)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) > os.getpriority(os.PRIO_PROCESS, 0)
        of_child, mine = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (child.pid, "self"))
        assert of_child > mine
    finally:
        child.kill()
        child.wait()
