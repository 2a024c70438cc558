"""A file of a version that is not the one its row describes is found by its hash wherever the version is loaded, and named."""

import pytest

from apps import artifacts
from apps.jobs.runs import run_of
from apps.registry import services
from apps.registry.models import ModelVersion
from tests.apps import making

FILES = {"moe": "model.safetensors", "int8": "model.safetensors", "pruned": "model.safetensors", "onnx": "model.onnx"}


def swap_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


DAMAGES = [(swap_a_bit, "was changed after it was written"), (remove, "is missing")]
each_kind = pytest.mark.parametrize("kind", FILES)
each_damage = pytest.mark.parametrize(("damage", "says"), DAMAGES)


@pytest.fixture
def version(db, operator, kind) -> ModelVersion:
    return making.version("v1", kind=kind, run=making.processed(operator).current_run, weights=FILES[kind])


@pytest.mark.django_db(transaction=True)
@each_kind
@each_damage
def test_who_asks_a_damaged_version_is_told_which_file_it_is(as_operator, answers_with, version, kind, damage, says):
    answers_with(making.version("v2", state="live"))
    damage(artifacts.local_path(version.folder) / FILES[kind])

    response = as_operator.post("/api/v1/generate/", {"prompt": "What is water?", "version": version.pk})

    assert response.status_code >= 500
    assert f"{version.folder}/{FILES[kind]} {says}" in response.json()["detail"]


@each_kind
@each_damage
def test_a_damaged_version_is_not_evaluated(version, kind, tmp_path, damage, says):
    job = services.evaluate(version=version, actor=None)
    damage(artifacts.local_path(version.folder) / FILES[kind])

    with pytest.raises(artifacts.ArtifactDamaged, match=rf"{FILES[kind]} {says}"):
        run_of(job.kind).prepare(job, tmp_path)


@pytest.mark.parametrize("kind", ["moe", "pruned"])
@each_damage
def test_a_damaged_version_is_not_compressed(version, kind, tmp_path, damage, says):
    job = services.compress(version=version, method="int8", options={}, actor=None)
    damage(artifacts.local_path(version.folder) / FILES[kind])

    with pytest.raises(artifacts.ArtifactDamaged, match=rf"{FILES[kind]} {says}"):
        run_of(job.kind).prepare(job, tmp_path)
