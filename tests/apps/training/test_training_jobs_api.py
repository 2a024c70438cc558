from pathlib import Path

import pytest

from apps.jobs.models import Job
from apps.training.models import TrainingJob
from apps.training.services import spec_of
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


def test_what_disagrees_is_named_together(as_operator, data):
    assert start(as_operator, data, zero_stage=2).json()["fields"] == ["zero_stage", "world_size"]
    assert start(as_operator, data, steps=10, minutes=1).json()["fields"] == ["steps", "minutes"]


def test_experts_that_cannot_be_spread_are_refused_with_the_fields_that_disagree(as_operator, data, monkeypatch):
    monkeypatch.setattr("django.conf.settings.CORES", 6)
    asked = {"world_size": 2, "expert_parallel_size": 2}

    def fields(**changes):
        refused = start(as_operator, data, **asked | changes)
        assert refused.status_code == 400 and not TrainingJob.objects.exists()
        return refused.json()["fields"]

    assert fields(zero_stage=2) == ["expert_parallel_size", "zero_stage"]
    assert fields(world_size=3) == ["expert_parallel_size", "world_size"]
    assert fields(world_size=6, expert_parallel_size=3) == ["expert_parallel_size", "preset"]  # of 8 experts
    dense = making.version("twin", run=data.current_run)
    dense.config = {
        "d_model": 16, "d_expert": 0, "n_experts": 0, "top_k": 0, "d_dense": 32, "vocab_size": 300, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1,
        "head_dim": 8, "max_seq_len": 64,
    }  # fmt: skip
    dense.save()
    assert fields(parent=dense.pk) == ["expert_parallel_size", "parent"]
    job = start(as_operator, data, **asked).json()
    assert job["expert_parallel_size"] == 2
    assert TrainingJob.objects.get().options["spec"] == {"expert_parallel_size": 2}


def test_a_recipe_is_what_differs_from_the_defaults_and_what_it_may_not_be_is_named(as_operator, data):
    recipe = {"optimizer": "adamw", "schedule": "wsd", "ema_decay": 0.99, "clip_norm": 1.0}
    job = start(as_operator, data, recipe=recipe).json()
    assert job["recipe"] == {"optimizer": "adamw", "schedule": "wsd", "ema_decay": 0.99}  # a norm of 1 is the default
    row = TrainingJob.objects.get()
    assert spec_of(row, Path("work")) | job["recipe"] == spec_of(row, Path("work"))
    refused = start(as_operator, data, recipe={"ema_decay": 1.0})
    assert (refused.status_code, refused.json()["fields"]) == (400, ["ema_decay"])
    assert start(as_operator, data, recipe={"optimizer": "sgd"}).status_code == 400


def test_a_run_that_will_not_fit_is_refused_before_it_is_queued_and_the_nearest_that_fits_is_then_taken(as_operator, data, monkeypatch):
    monkeypatch.setattr("apps.training.estimates.machine_bytes", lambda: 2_000_000_000)
    asked = {"preset": "small", "micro_batch": 128, "steps": 10}

    response = start(as_operator, data, **asked)

    refused = response.json()
    assert response.status_code == 400, refused
    assert response["Content-Type"] == "application/problem+json"
    assert not TrainingJob.objects.exists()
    memory = refused["memory"]
    assert sum(part["bytes"] for part in memory["parts"]) == pytest.approx(memory["rank_bytes"], abs=10)
    assert memory["bytes"] > memory["room_bytes"] == 1_800_000_000
    assert refused["nearest"]["micro_batch"] * refused["nearest"]["accum_steps"] == 128
    accepted = start(as_operator, data, **{**asked, **refused["nearest"]})
    assert accepted.status_code == 202, accepted.json()
    assert TrainingJob.objects.get().options["spec"]["micro_batch"] == refused["nearest"]["micro_batch"]


def test_recomputed_activations_are_told_to_the_child_and_planned(as_operator, data, monkeypatch):
    asked = {"preset": "small", "micro_batch": 31, "steps": 10}  # which no halving divides
    monkeypatch.setattr("apps.training.estimates.machine_bytes", lambda: 2_500_000_000)

    assert start(as_operator, data, **asked).json()["nearest"] == {"activation_checkpointing": True}
    assert start(as_operator, data, **asked, activation_checkpointing=True).status_code == 202
    assert TrainingJob.objects.get().options["spec"] == {"micro_batch": 31, "activation_checkpointing": True}


def test_a_model_for_which_no_configuration_fits_but_a_smaller_one_names_that(as_operator, data, monkeypatch):
    monkeypatch.setattr("apps.training.estimates.machine_bytes", lambda: 16_000_000_000)

    assert start(as_operator, data, preset="moe-128b-a16b", steps=10).json()["nearest"]["preset"] == "base"


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
