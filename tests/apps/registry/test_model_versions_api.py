import hashlib
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from apps import artifacts
from apps.accounts.models import AuditEntry
from apps.jobs.models import Job
from apps.jobs.runs import run_of
from apps.registry.models import Evaluation, GateDecision, ImportJob, ModelVersion
from apps.serving import cache, epoch
from tests.apps import making

pytestmark = pytest.mark.django_db


@pytest.fixture
def data(operator):
    return making.processed(operator)


@pytest.fixture
def held_out(data):
    return data.current_run.evaluation_sets.get()


@pytest.fixture
def live(data, held_out):
    version = making.version("v1", state="live", run=data.current_run)
    making.evaluated(version, held_out, bleu=60.0)
    return version


@pytest.fixture
def better(data, held_out, live):
    version = making.version("v2", run=data.current_run, parent=live)
    making.evaluated(version, held_out, bleu=63.0)
    return version


def url(version, what=""):
    return f"/api/v1/model-versions/{version.pk}/{what}"


def test_a_version_tells_what_it_is_how_large_how_good_and_where_it_came_from(as_viewer, better, live, data):
    row = as_viewer.get(url(better)).json()

    assert (row["kind"], row["state"], row["parent"], row["dataset"]) == ("moe", "candidate", live.pk, data.pk)
    assert (row["total_parameters"], row["active_parameters"], row["artifact_bytes"]) == (1000, 500, 1000)
    assert {name: row["evaluation"][name] for name in ("bleu", "bleu_low", "bleu_high", "refusal_rate", "false_alarm_rate", "questions")} == {
        "bleu": 63.0, "bleu_low": 65.0, "bleu_high": 75.0, "refusal_rate": 0.95, "false_alarm_rate": 0.02, "questions": 2,
    }  # fmt: skip
    assert [relative["name"] for relative in row["lineage"]] == ["v1", "v2"]
    assert [child["name"] for child in as_viewer.get(url(live)).json()["children"]] == ["v2"]


def test_a_version_that_was_never_evaluated_has_no_figures(as_viewer, data):
    making.version("v1", run=data.current_run)

    assert as_viewer.get("/api/v1/model-versions/").json()["results"][0]["evaluation"] is None


def test_promotion_needs_a_bleu_five_percent_higher_and_changes_what_is_live(as_operator, operator, better, live, django_capture_on_commit_callbacks):
    gate = as_operator.get(url(better, "gates/")).json()
    cache.put("key", {"text": "of v1"}, epoch.current())

    with django_capture_on_commit_callbacks(execute=True):
        response = as_operator.post(url(better, "promote/"))

    assert gate["passed"]
    assert gate["rules"][0] | {"reason": ""} == {"name": "bleu", "passed": True, "value": 63.0, "threshold": 63.0, "reason": ""}
    assert response.status_code == 200, response.json()
    assert (response.json()["version"]["state"], response.json()["deployment"]["reason"]) == ("live", "promotion")
    assert as_operator.get(url(live)).json()["state"] == "retired"
    assert cache.get("key", epoch.current()) is None
    entry = AuditEntry.objects.get(action="version.promote")
    assert (entry.actor, entry.before, entry.after) == (operator, {"live": "v1"}, {"live": "v2"})


def test_promotion_is_refused_when_bleu_gains_less_than_five_percent_and_says_why(as_operator, better, live, held_out):
    Evaluation.objects.filter(model_version=better).update(metrics=making.FIGURES | {"bleu": 62.9})

    response = as_operator.post(url(better, "promote/"))

    body = response.json()
    assert response.status_code == 409
    assert len(body["reasons"]) == 1
    assert "62.9 is below 63.0" in body["reasons"][0]
    assert body["rules"][0]["passed"] is False
    assert ModelVersion.objects.get(state="live") == live
    assert GateDecision.objects.get().passed is False
    assert AuditEntry.objects.filter(action="version.promotion_refused").exists()


def test_a_version_without_an_evaluation_cannot_go_live(as_operator, data, live):
    response = as_operator.post(url(making.version("v3", run=data.current_run), "promote/"))

    assert response.status_code == 409
    assert "evaluate it first" in response.json()["detail"]


def test_what_is_live_cannot_go_live_again(as_operator, live):
    assert as_operator.post(url(live, "promote/")).status_code == 409


def test_a_smaller_child_goes_live_within_one_point_of_its_parent(as_operator, operator, live, held_out, data):
    job = as_operator.post("/api/v1/compressions/", {"model_version": live.pk, "method": "int8"}).json()
    child = making.version("v1-int8", kind="int8", parent=live, run=data.current_run, size=250)
    ModelVersion.objects.filter(pk=child.pk).update(compression_job_id=job["id"])
    making.evaluated(child, held_out, bleu=59.2)

    assert as_operator.get(url(child, "gates/")).json()["passed"]
    Evaluation.objects.filter(model_version=child).update(metrics=making.FIGURES | {"bleu": 58.9})
    assert not as_operator.get(url(child, "gates/")).json()["passed"]


def test_rolling_back_restores_what_served_before(as_operator, better, live):
    assert as_operator.post(url(live, "rollback/")).status_code == 409
    live.deployments.create(reason="first")
    as_operator.post(url(better, "promote/"))

    response = as_operator.post(url(better, "rollback/"))

    assert response.status_code == 200, response.json()
    assert response.json()["version"]["id"] == live.pk
    assert ModelVersion.objects.get(state="live") == live
    assert [d["reason"] for d in as_operator.get("/api/v1/deployments/").json()["results"]] == ["rollback", "promotion", "first"]


def test_evaluating_queues_the_version_and_a_baseline_that_lacks_the_set(as_operator, data, live, better, operator):
    newer = making.processed(operator, "newer")
    ModelVersion.objects.filter(pk=better.pk).update(run=newer.current_run)

    response = as_operator.post(url(better, "evaluate/"), {"max_questions": 50})

    job = response.json()
    assert (response.status_code, job["kind"], job["options"]) == (202, "evaluation", {"max_questions": 50})
    assert as_operator.get(job["url"]).json()["model_version"] == better.pk
    queued = Evaluation.objects.filter(status=Job.Status.QUEUED)
    assert {(e.model_version, e.evaluation_set.run.dataset) for e in queued} == {(better, newer), (live, newer)}


def test_files_are_listed_with_their_checksums_and_come_as_they_are(as_viewer, live):
    files = {f["name"]: f for f in as_viewer.get(url(live, "files/")).json()["results"]}

    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for entry in files.values():
        content = b"".join(as_viewer.get(entry["url"]).streaming_content)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])


@pytest.mark.parametrize("name", ["../../secret_key", "..%2f..%2fsecret_key", "nothing.bin", "/etc/passwd", "model.safetensors/"])
def test_nothing_but_a_versions_own_files_can_be_read(as_admin, live, name):
    assert as_admin.get(url(live, f"files/{name}")).status_code == 404


# -- import


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w")
    return folder


def test_an_adapter_is_imported_onto_a_version_and_becomes_its_child(as_operator, live, settings, tmp_path):
    settings.IMPORT_ROOTS = [tmp_path / "root"]
    folder = tmp_path / "root" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    small = making.version("v1-int8", kind="int8", run=live.run)
    asked = {"name": "tuned", "path": "adapter"}
    for wrong, field in (({}, "path"), ({"parent": small.pk}, "parent"), ({"parent": "nobody"}, "parent")):
        refused = as_operator.post("/api/v1/model-versions/", {**asked, **wrong})
        assert (refused.status_code // 100, list(refused.json()["errors"])) == (4, [field]), wrong
    assert not ImportJob.objects.exists()

    assert as_operator.post("/api/v1/model-versions/", {**asked, "parent": live.pk}).status_code == 202

    job = ImportJob.objects.get()
    spec = run_of(job.kind).prepare(job, tmp_path).spec
    assert (spec["source_folder"], Path(spec["parent_folder"])) == (str(folder), artifacts.local_path(live.folder))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"a")
    result = {"kind": "moe", "total_parameters": 10, "active_parameters": 5, "config": {}}
    run_of(job.kind).complete(job, result, tmp_path)
    tuned = ModelVersion.objects.get(name="tuned")
    assert (tuned.parent, tuned.run) == (live, live.run)
    assert tuned.evaluations.exists()


@pytest.mark.parametrize("absolute", [True, False])
def test_a_folder_below_an_import_root_is_imported(as_operator, settings, tmp_path, absolute):
    settings.IMPORT_ROOTS = [tmp_path / "root"]
    folder = model_folder(tmp_path / "root" / "gpt")

    response = as_operator.post("/api/v1/model-versions/", {"name": "gpt", "path": str(folder) if absolute else "gpt"})

    assert (response.status_code, response.json()["kind"]) == (202, "import")
    assert as_operator.get(response.json()["url"]).json()["model_version"] is None
    assert as_operator.post("/api/v1/model-versions/", {"name": "gpt", "path": "gpt"}).status_code == 409


def test_a_folder_elsewhere_or_a_link_out_of_the_root_is_refused(as_operator, settings, tmp_path):
    settings.IMPORT_ROOTS = [tmp_path / "root"]
    outside = model_folder(tmp_path / "outside")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(outside)

    for path in (str(outside), "../outside", "link", "", "x" * 600, "a\0b", "s3://somewhere/model", "file:///etc"):
        response = as_operator.post("/api/v1/model-versions/", {"name": "gpt", "path": path})
        assert response.status_code == 400, path
        assert "path" in response.json()["errors"]
    assert not ImportJob.objects.exists()


def test_a_url_is_imported_where_the_settings_allow_its_beginning(as_operator, settings):
    settings.IMPORT_URLS = ["s3://models"]

    assert as_operator.post("/api/v1/model-versions/", {"name": "a", "path": "s3://models/gpt"}).status_code == 202
    assert as_operator.post("/api/v1/model-versions/", {"name": "b", "path": "s3://models/../secret"}).status_code == 400
    assert as_operator.post("/api/v1/model-versions/", {"name": "b", "path": "s3://models-of-others/gpt"}).status_code == 400
    assert as_operator.post("/api/v1/model-versions/", {"name": "b", "path": "s3://models/x::file:///etc"}).status_code == 400


def test_the_files_of_a_model_come_as_multipart(as_operator):
    files = [SimpleUploadedFile("config.json", b"{}"), SimpleUploadedFile("model.safetensors", b"w" * 10)]

    response = as_operator.upload("/api/v1/model-versions/", {"name": "sent", "files": files})

    assert response.status_code == 202, response.json()
    folder = Path(ImportJob.objects.get().source)
    assert {f.name: f.stat().st_size for f in folder.iterdir()} == {"config.json": 2, "model.safetensors": 10}
    without = as_operator.upload("/api/v1/model-versions/", {"name": "half", "files": [SimpleUploadedFile("config.json", b"{}")]})
    assert (without.status_code, list(without.json()["errors"])) == (400, ["files"])
