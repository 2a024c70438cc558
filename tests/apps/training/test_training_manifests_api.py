"""A training job for an existing scheduler, over REST and from its page."""

import re

import pytest
import yaml
from django.test import Client

from apps.training.models import TrainingJob
from tests.apps import making
from workers.training.spec import TrainSpec

pytestmark = pytest.mark.django_db


@pytest.fixture
def job(operator) -> TrainingJob:
    return making.training_job(making.processed(operator), accum_steps=8)


def ask(client, job, scheduler="jobset", **query):
    return client.get(f"/api/v1/training-jobs/{job.pk}/manifests/{scheduler}/", query)


@pytest.mark.parametrize("scheduler", ["jobset", "trainjob"])
def test_a_manifest_holds_the_jobs_spec_with_the_fleets_ranks(as_operator, job, scheduler):
    response = ask(as_operator, job, scheduler, nodes=2, ranks_per_node=4, device="cuda", claim="weights", memory_gib=64)

    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    assert response["Content-Disposition"] == f'attachment; filename="train-{job.pk.lower()}.yaml"'
    text = response.content.decode()
    config, *_, last = yaml.safe_load_all(text)
    spec = TrainSpec.model_validate_json(config["data"]["spec.json"])
    assert (spec.world_size, spec.accum_steps, spec.preset, spec.device) == (8, 1, "nano", "cuda")  # 8 micro-batches, as in the portal
    assert spec.output_folder.is_absolute() and job.pk in str(spec.output_folder)
    assert last["kind"] == {"jobset": "JobSet", "trainjob": "TrainJob"}[scheduler]
    assert "claimName: weights" in text and "memory: 64Gi" in text and f"nvidia.com/gpu: '{4}'" in text


def test_slurm_gets_a_script(as_operator, job):
    response = ask(as_operator, job, "slurm", nodes=3, ranks_per_node=2, hours=5)

    text = response.content.decode()
    assert text.startswith("#!/bin/bash\n") and response["Content-Disposition"].endswith('.sbatch"')
    assert {"--nodes=3", "--time=5:00:00"} <= set(re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize(("scheduler", "query", "status", "field"), [
    ("cron", {}, 404, None), ("jobset", {"nodes": 0}, 400, "nodes"), ("slurm", {"ranks_per_node": "many"}, 400, "ranks_per_node"),
    ("slurm", {"image": "a b"}, 400, "image"), ("jobset", {"claim": "x\ny"}, 400, "claim"), ("jobset", {"device": "abacus"}, 400, "device"),
])  # fmt: skip
def test_what_makes_no_fleet_is_refused_at_its_field(as_operator, job, scheduler, query, status, field):
    response = ask(as_operator, job, scheduler, **query)

    assert response.status_code == status and response["Content-Type"] == "application/problem+json"
    assert field is None or field in response.json()["errors"]


def test_a_fleet_that_the_job_cannot_be_shared_by_is_refused_and_says_why(as_operator, operator):
    spread = making.training_job(making.processed(operator), world_size=2, options={"spec": {"expert_parallel_size": 2}})

    refused = ask(as_operator, spread, nodes=3).json()

    assert refused["fields"] == ["nodes", "ranks_per_node"]
    assert "world_size (3) must be a multiple of expert_parallel_size (2)" in refused["detail"]


def test_only_operators_may_have_it(as_viewer, as_admin, anonymous, job):
    assert [ask(client, job).status_code for client in (anonymous, as_viewer, as_admin)] == [401, 403, 200]


def test_the_schema_tells_of_it(as_viewer):
    document = as_viewer.get("/api/schema/", {"format": "json"}).json()
    get = document["paths"]["/api/v1/training-jobs/{id}/manifests/{scheduler}/"]["get"]

    parameters = {each["name"]: each for each in get["parameters"]}
    assert parameters["scheduler"]["schema"]["enum"] == ["jobset", "slurm", "trainjob"]
    assert {"nodes", "ranks_per_node", "device", "image", "claim", "cpus", "memory_gib", "hours"} <= set(parameters)
    assert list(get["responses"]["200"]["content"]) == ["text/plain"]


def test_the_page_of_a_job_offers_it_to_operators(operator, viewer, job):
    pages = []
    for person in (operator, viewer):
        client = Client()
        client.force_login(person)
        pages.append(client.get(f"/training/{job.pk}/").content.decode())

    links = re.findall(r'formaction="([^"]+/manifests/\w+/)"', pages[0])
    assert [link.split("/")[-2] for link in links] == ["jobset", "trainjob", "slurm"]
    assert "/manifests/" not in pages[1]
    assert Client().get(links[0]).status_code == 401
