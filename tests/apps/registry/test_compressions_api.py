"""A compression over REST: what is queued, what is refused before it is, and what comes of it."""

import json

import pytest

from apps.accounts.models import AuditEntry
from apps.jobs.runs import run_of
from apps.registry import selectors, services
from apps.registry.models import CompressionJob, Evaluation, ModelVersion
from tests.apps import making
from workers.compression.applicable import OPTIONS
from workers.compression.spec import CompressSpec

pytestmark = pytest.mark.django_db

ADDRESS = "/api/v1/compressions/"


@pytest.fixture
def data(operator):
    return making.processed(operator)


@pytest.fixture
def live(data):
    return making.version("v1", state="live", run=data.current_run)


@pytest.mark.parametrize("options", [
    {"method": "int8"}, {"method": "prune", "sparsity": 0.5}, {"method": "prune", "threshold": 0.1}, {"method": "onnx"},
    {"method": "distill", "minutes": 1, "temperature": 2.0}, {"method": "policy"}, {"method": "prune", "sparsity": 0.5, "structure": "neuron", "importance": "use"},
    {"method": "onnx", "weights": "int8"}, {"method": "policy", "min_speed_ratio": 2.0, "max_p99_ms": 9.0, "target": "onnx"},
])  # fmt: skip
def test_each_method_is_queued_with_its_options(as_operator, live, options):
    response = as_operator.post(ADDRESS, {"model_version": live.pk, **options})

    job = response.json()
    assert response.status_code == 202, job
    assert (job["method"], job["model_version"], job["options"]) == (options["method"], live.pk, {k: v for k, v in options.items() if k != "method"})


@pytest.mark.parametrize(("options", "field"), [
    ({"method": "zip"}, "method"), ({}, "method"), ({"method": "prune"}, "sparsity"), ({"method": "prune", "sparsity": 0.5, "threshold": 0.1}, "sparsity"),
    ({"method": "prune", "sparsity": 1.5}, "sparsity"), ({"method": "prune", "sparsity": 1.0}, "sparsity"), ({"method": "prune", "threshold": -1}, "threshold"),
    ({"method": "distill", "student": "nobody"}, "student"), ({"method": "distill", "steps": 5, "minutes": 1}, "steps"),
    ({"method": "distill", "minutes": -1}, "minutes"), ({"method": "distill", "temperature": 0}, "temperature"),
])  # fmt: skip
def test_what_cannot_be_compressed_so_is_refused_at_its_field(as_operator, live, options, field):
    response = as_operator.post(ADDRESS, {"model_version": live.pk, **options})

    assert response.status_code == 400, response.json()
    assert field in response.json()["errors"]


@pytest.mark.parametrize(("options", "field", "takers"), [
    ({"method": "int8", "sparsity": 0.5}, "sparsity", "prune"), ({"method": "onnx", "student": "nano"}, "student", "distill, policy"),
    ({"method": "prune", "sparsity": 0.5, "weights": "int8"}, "weights", "onnx"), ({"method": "distill", "max_bytes": 9}, "max_bytes", "policy"),
    ({"method": "policy", "threshold": 0.1}, "threshold", "prune"), ({"method": "int8", "minutes": 1}, "minutes", "prune, distill, policy"),
])  # fmt: skip
def test_an_option_of_another_method_is_refused_and_told_whose_it_is(as_operator, live, options, field, takers):
    response = as_operator.post(ADDRESS, {"model_version": live.pk, **options})

    assert (response.status_code, response["Content-Type"]) == (400, "application/problem+json")
    assert response.json()["errors"][field] == [
        f"{field} is an option of {takers}, and {options['method']} does not look at it. Leave it out, or choose another method."
    ]
    assert not CompressionJob.objects.exists()


def test_what_no_method_takes_is_refused_by_name(as_operator, live):
    response = as_operator.post(ADDRESS, {"model_version": live.pk, "method": "prune", "sparsity": 0.5, "sparsness": 0.9})

    assert response.status_code == 400
    assert response.json()["errors"] == {"sparsness": ["No method has such an option."]}
    assert not CompressionJob.objects.exists()


def test_quality_is_limited_in_one_way_only(as_operator, live):
    response = as_operator.post(ADDRESS, {"model_version": live.pk, "method": "policy", "max_bleu_loss": 1, "min_bleu_ratio": 0.9})

    assert response.status_code == 400
    assert "not both" in json.dumps(response.json())


def test_all_options_of_other_methods_are_named_at_once(as_operator, live):
    response = as_operator.post(ADDRESS, {"model_version": live.pk, "method": "onnx", "weights": "int8", "steps": 5, "target": "cpu"})

    assert response.json()["fields"] == ["steps", "target"]


@pytest.mark.parametrize(("options", "config", "says"), [
    ({"method": "distill", "student": "nano"}, {}, "would not be smaller than its teacher"),
    ({"method": "prune", "structure": "expert", "sparsity": 0.5}, {"n_experts": 0}, "has no experts to remove"),
    ({"method": "prune", "structure": "expert", "sparsity": 0.5}, {"n_experts": 2, "top_k": 2}, "removes not one of 2 experts"),
    ({"method": "prune", "structure": "layer", "sparsity": 0.5, "importance": "use"}, {}, "for whole neurons and experts"),
])  # fmt: skip
def test_a_method_that_cannot_work_for_this_model_is_refused_before_it_is_queued(as_operator, live, options, config, says):
    ModelVersion.objects.filter(pk=live.pk).update(config=config)

    response = as_operator.post(ADDRESS, {"model_version": live.pk, **options})

    assert response.status_code == 400
    assert says in json.dumps(response.json())
    assert not CompressionJob.objects.exists()


def test_what_was_not_trained_here_is_neither_mended_nor_judged(as_operator, live):
    imported = making.version("imported")

    for options in ({"method": "prune", "sparsity": 0.5, "minutes": 1}, {"method": "policy"}, {"method": "distill"}):
        assert as_operator.post(ADDRESS, {"model_version": imported.pk, **options}).status_code in (400, 409)
    assert not CompressionJob.objects.exists()


def test_a_portal_without_held_out_questions_compresses_what_it_imported(as_operator, tmp_path):
    job = services.compress(version=making.version("imported"), method="int8", options={}, actor=None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"s")

    run_of(job.kind).complete(job, {"kind": "int8", "total_parameters": 10, "active_parameters": 5, "config": {}, "details": {}}, tmp_path)

    assert job.versions.get().name == "imported-int8"
    assert not Evaluation.objects.exists()


def test_a_student_that_became_int8_leaves_both_versions_in_its_line(live, tmp_path):
    """Completing again, after a crash, makes no third one."""
    job = services.compress(version=live, method="policy", options={}, actor=None)
    child = {"total_parameters": 10, "active_parameters": 5, "config": {}, "details": {}}
    result = {"kind": "int8", **child, "above": [{"kind": "distilled", "folder": "policy-distillation", **child}]}

    for _again in range(2):
        for folder in ("model", "policy-distillation"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "model.safetensors").write_bytes(b"s")
        run_of(job.kind).complete(job, result, tmp_path)

    small = ModelVersion.objects.get(kind="int8")
    assert [version.kind for version in selectors.lineage(small)] == ["moe", "distilled", "int8"]
    assert [version.name for version in selectors.lineage(small)] == ["v1", "v1-distilled", "v1-distilled-int8"]
    assert job.versions.count() == 2
    assert all(version.evaluations.exists() for version in job.versions.all())


def test_what_is_compressed_already_is_a_conflict(as_operator, data):
    small = making.version("v1-int8", kind="int8", run=data.current_run)

    assert as_operator.post(ADDRESS, {"model_version": small.pk, "method": "int8"}).status_code == 409


def test_what_methods_are_told_are_fields_of_the_childs_spec():
    assert set().union(*OPTIONS.values()) <= set(CompressSpec.model_fields)
    assert set(OPTIONS) == set(CompressionJob.Method.values)


def test_the_same_again_is_told_in_the_audit_log_once(as_operator, live):
    for _again in range(2):
        as_operator.post(ADDRESS, {"model_version": live.pk, "method": "int8"})

    assert AuditEntry.objects.filter(action="version.compress").count() == 1
