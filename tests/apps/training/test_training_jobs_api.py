import pytest

from apps.jobs.models import Job
from apps.training.models import TrainingJob
from tests.apps import making

pytestmark = pytest.mark.django_db


@pytest.fixture
def data(operator):
    return making.processed(operator)


def start(client, data, **fields):
    return client.post("/api/v1/training-jobs/", {"dataset": data.pk, **fields})


def test_a_training_is_queued_with_everything_that_was_asked_for(as_operator, data):
    asked = {"preset": "small", "steps": 200, "precision": "fp32", "accum_steps": 4, "router": "sigmoid", "seed": 7, "domain_routing": 0.1}

    response = start(as_operator, data, **asked)

    job = response.json()
    assert response.status_code == 202, job
    assert {name: job[name] for name in asked} == asked
    assert (job["status"], job["dataset"], job["minutes"], job["model_version"], job["metrics"]) == ("queued", data.pk, None, None, {})
    assert as_operator.get(job["url"]).json() == job


def test_two_minutes_where_neither_steps_nor_minutes_are_given(as_operator, data):
    assert start(as_operator, data).json()["minutes"] == 2.0


def test_a_training_goes_on_from_a_version(as_operator, data):
    parent = making.version("v1", run=data.current_run)

    assert start(as_operator, data, parent=parent.pk).json()["parent"] == parent.pk


@pytest.mark.parametrize(("fields", "field", "status"), [
    ({"preset": "huge"}, "preset", 400), ({"steps": 10, "minutes": 1}, "steps", 400), ({"minutes": 0}, "minutes", 400), ({"minutes": 1e6}, "minutes", 400),
    ({"steps": 0}, "steps", 400), ({"steps": 1.5}, "steps", 400), ({"precision": "int4"}, "precision", 400), ({"accum_steps": 0}, "accum_steps", 400),
    ({"zero_stage": 2}, "zero_stage", 400), ({"zero_stage": 4}, "zero_stage", 400), ({"world_size": 30_000}, "world_size", 400),
    ({"router": "random"}, "router", 400), ({"parent": "nobody"}, "parent", 404), ({"dataset": "nobody"}, "dataset", 404), ({"seed": -1}, "seed", 400),
    ({"domain_routing": 1.5}, "domain_routing", 400),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_at_its_field(as_operator, data, fields, field, status):
    response = start(as_operator, data, **fields)

    assert response.status_code == status, response.json()
    assert field in response.json()["errors"]
    assert not TrainingJob.objects.exists()


def test_an_unprocessed_dataset_is_a_conflict(as_operator, operator):
    assert start(as_operator, making.dataset(operator)).status_code == 409


def test_a_finished_training_names_its_version_and_its_last_figures(as_viewer, data):
    job = making.training_job(data, metrics={"loss": 0.5, "tokens_per_second": 6000.0, "expert_load_max_over_mean": 1.2}, status=Job.Status.SUCCEEDED)
    version = making.version("v1", run=data.current_run)
    version.training_job = job
    version.save()

    row = as_viewer.get(f"/api/v1/training-jobs/{job.pk}/").json()

    assert row["model_version"] == version.pk
    assert row["metrics"] == {"loss": 0.5, "tokens_per_second": 6000.0, "expert_load_max_over_mean": 1.2}


def test_trainings_are_filtered_by_status_and_dataset(as_viewer, operator, data):
    other = making.processed(operator, "other")
    mine = making.training_job(data)
    making.training_job(other, status=Job.Status.FAILED)

    def ids(query):
        return [row["id"] for row in as_viewer.get(f"/api/v1/training-jobs/?{query}").json()["results"]]

    assert ids(f"dataset={data.pk}") == ids("status=queued") == [mine.pk]


def test_presets_tell_their_counted_parameters_and_their_dense_twin(as_viewer):
    presets = {p["name"]: p for p in as_viewer.get("/api/v1/presets/").json()["results"]}

    big = presets["moe-128b-a16b"]
    assert abs(big["total_parameters"] / 128e9 - 1) <= 0.02
    assert abs(big["active_parameters"] / 16e9 - 1) <= 0.02
    assert abs(big["dense_twin"]["total_parameters"] / big["total_parameters"] - 1) < 0.01
    assert presets["nano"]["configuration"]["n_experts"] == 8
