"""What a run learns from and what of the model it moves: asked for, kept, refused before it is queued, and told to the child."""

import json

import pytest

from apps.training.models import TrainingJob
from apps.training.services import spec_text
from tests.apps import making
from workers.training.spec import TrainSpec

pytestmark = pytest.mark.django_db
RATED = {"pairs": 3, "good": 4, "bad": 2}


@pytest.fixture
def data(operator):
    """A dataset with questions and claims, and ratings."""
    made = making.processed(operator)
    report = {"preferences": RATED, "mixture": [{"split": "train", "kind": kind, "rows": 5, "tokens": 50} for kind in ("question", "claim")]}
    made.current_run.report |= report
    made.current_run.save()
    return made


@pytest.fixture
def parent(data):
    return making.version("v1", run=data.current_run)


@pytest.fixture
def start(as_operator, data):
    return lambda **fields: as_operator.post("/api/v1/training-jobs/", {"dataset": data.pk, **fields})


def spec_of(job_id: str) -> TrainSpec:
    return TrainSpec.model_validate(json.loads(spec_text(TrainingJob.objects.get(pk=job_id))))


def test_lora_is_told_to_the_child(start, parent):
    job = start(method="lora", lora={"rank": 4, "alpha": 12, "targets": ["attention"]}, parent=parent.pk).json()

    assert (job["method"], job["lora"]) == ("lora", {"rank": 4, "alpha": 12.0, "targets": ["attention"]})
    lora = spec_of(job["id"]).lora
    assert (lora.rank, lora.alpha, lora.targets) == (4, 12.0, ("attention",))


def test_rank_8_where_lora_is_asked_for_and_no_more(start, parent):
    assert spec_of(start(method="lora", parent=parent.pk).json()["id"]).lora.rank == 8


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_preference_training_is_told_to_the_child(start, parent, objective):
    job = start(objective=objective, parent=parent.pk).json()
    assert job["objective"] == objective and spec_of(job["id"]).preference_method == objective


def test_stages_are_told_to_the_child_in_order(start):
    stages = [{"kind": "questions", "share": 3}, {"kind": "adversarial", "rehearsal": 0.5}, {"kind": "preference"}]
    job = start(stages=stages, objective="kto").json()
    assert [(s.kind, s.share, s.rehearsal) for s in spec_of(job["id"]).stages] == [("questions", 3, 0), ("adversarial", 1, 0.5), ("preference", 1, 0)]


def test_a_plain_run_is_full_training_on_the_mixture(start):
    job = start().json()
    assert (job["method"], job["lora"], job["objective"], job["stages"]) == ("full", {}, "sft", [])
    assert not {"lora", "objective", "stages"} & spec_of(job["id"]).model_fields_set


@pytest.mark.parametrize(("fields", "field"), [
    ({"method": "lora"}, "method"), ({"method": "qlora"}, "method"), ({"lora": {"rank": 4}}, "lora"), ({"method": "lora", "lora": {"rank": 0}}, "lora"),
    ({"method": "lora", "lora": {"targets": []}}, "lora"), ({"objective": "dpo"}, "objective"), ({"objective": "ppo"}, "objective"),
    ({"stages": [{"kind": "questions"}], "objective": "dpo"}, "stages"), ({"stages": [{"kind": "pictures"}]}, "stages"),
    ({"stages": [{"kind": "questions", "share": 0}]}, "stages"),
])  # fmt: skip
def test_what_cannot_be_learnt_is_refused_at_its_field(start, fields, field):
    response = start(**fields)

    assert response.status_code == 400, response.json()
    assert any(name.split(".")[0] == field for name in response.json()["errors"]), response.json()
    assert not TrainingJob.objects.exists()


@pytest.mark.parametrize(("found", "fields", "field"), [
    (None, {"objective": "dpo"}, "objective"), ({"pairs": 0, "good": 9, "bad": 9}, {"objective": "dpo"}, "objective"),
    ({"pairs": 9, "good": 9, "bad": 0}, {"objective": "kto"}, "objective"), ({"pairs": 0, "good": 0, "bad": 0}, {"stages": [{"kind": "preference"}]}, "stages"),
    (RATED, {"stages": [{"kind": "text"}]}, "stages"),
])  # fmt: skip
def test_a_dataset_without_the_rows_is_a_conflict_at_its_field(start, data, parent, found, fields, field):
    data.current_run.report["preferences"] = found
    data.current_run.save()

    response = start(parent=parent.pk, **fields)

    assert response.status_code == 409, response.json()
    assert field in response.json()["errors"]


def test_the_page_offers_them(operator, client, data, parent):
    client.force_login(operator)
    values = {"dataset": data.pk, "preset": "nano", "amount": "5", "unit": "steps", "precision": "fp32", "router": "softmax", "accum_steps": "1",
              "world_size": "1", "zero_stage": "0", "seed": "0"}  # fmt: skip

    page = client.post("/training/new/", values | {"method": "lora", "lora_rank": "4", "objective": "dpo"})
    assert page.status_code == 400 and page.context["form"].errors.keys() == {"method"}

    client.post("/training/new/", values | {"parent": parent.pk, "method": "lora", "lora_rank": "4", "objective": "dpo", "order": "stages"})
    job = TrainingJob.objects.get()
    assert (job.method, job.lora, job.objective) == ("lora", {"rank": 4, "alpha": 8.0}, "dpo")
    assert [stage["kind"] for stage in job.stages] == ["questions", "adversarial", "preference"]
    again = client.get(f"/training/new/?clone={job.pk}").context["form"]
    assert {name: again[name].value() for name in ("method", "lora_rank", "objective", "order")} == {
        "method": "lora", "lora_rank": 4, "objective": "dpo", "order": "stages",
    }  # fmt: skip


def test_a_dataset_of_ratings_moves_its_parent_gently(start, data, parent):
    plain = spec_of(start(parent=parent.pk).json()["id"])
    type(data).objects.filter(pk=data.pk).update(origin="feedback")

    gentle = spec_of(start(parent=parent.pk).json()["id"])

    assert (gentle.lr, gentle.matrix_lr) == (plain.lr / 5, plain.matrix_lr / 5)
    for other in ({"method": "lora"}, {"objective": "dpo"}):  # gentle by themselves
        assert "lr" not in spec_of(start(parent=parent.pk, **other).json()["id"]).model_fields_set
