import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import save_file

from apps import artifacts
from apps.registry import services
from apps.registry.models import ModelVersion
from tests.apps import making
from tests.apps.answering import tokenizer

pytestmark = pytest.mark.django_db

EMBEDDING, QUERY = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def int8(tmp_path):
    def make(name: str = "v1-int8", **details) -> ModelVersion:
        folder = tmp_path / name
        folder.mkdir()
        described = {"model_type": "llama", "storage": {"format": "int8"}, "quantization_config": {}, "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(described))
        random = np.random.default_rng(0)
        matrices = {matrix: random.integers(-127, 128, (6, 4), np.int8) for matrix in (EMBEDDING, QUERY)}
        save_file(
            matrices | {f"{matrix}_scale": np.full((6, 1), 0.5, np.float16) for matrix in matrices} | {"model.norm.weight": np.ones(5, np.float32)},
            folder / "model.safetensors",
        )
        tokenizer().save(folder, 512)
        result = {"total_parameters": 1000, "active_parameters": 500, "config": {}, "details": details}
        return services.register_version(kind="int8", folder=folder, parent=None, run=None, result=result, actor=None, name=name)

    return make


def url(version: ModelVersion) -> str:
    return f"/api/v1/model-versions/{version.pk}/export/w8a8.tar"


def test_an_int8_version_comes_as_a_tar_for_servers_of_w8a8_with_its_checksums(as_viewer, int8):
    version = int8()
    assert as_viewer.get(f"/api/v1/model-versions/{version.pk}/").json()["w8a8_url"].endswith(url(version))

    response = as_viewer.get(url(version))

    content = b"".join(response.streaming_content)
    assert (response.status_code, int(response["Content-Length"])) == (200, len(content))
    assert response["Content-Disposition"] == 'attachment; filename="v1-int8-w8a8.tar"'
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {member.name.removeprefix("v1-int8-w8a8/"): tar.extractfile(member).read() for member in tar}
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "SHA256SUMS"}
    sums = dict(reversed(line.split("  ")) for line in files.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    described = json.loads(files["config.json"])
    assert (described["quantization_config"]["quant_method"], "storage" in described) == ("compressed-tensors", False)
    stored = (artifacts.local_path(version.folder) / "model.safetensors").read_bytes()
    assert dict(deserialize(files["model.safetensors"]))[QUERY] == dict(deserialize(stored))[QUERY]


def test_a_version_that_is_not_int8_is_refused_with_the_reason(as_viewer, int8):
    plain, mixed = making.version("v1"), int8("v1-mixed", kept_matrices=3)

    for version, why in ((plain, "Only an INT8 version"), (mixed, "Some matrices of this version are FP32")):
        response = as_viewer.get(url(version))
        assert (response.status_code, why in response.json()["detail"]) == (409, True)
        assert as_viewer.get(f"/api/v1/model-versions/{version.pk}/").json()["w8a8_url"] is None


def test_weights_that_are_not_those_that_were_written_are_not_exported_and_named(as_viewer, int8):
    version = int8()
    path = artifacts.local_path(version.folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")

    response = as_viewer.get(url(version))

    assert response.status_code == 409
    assert "model.safetensors was changed after it was written" in response.json()["detail"]


def test_the_page_of_an_int8_version_has_the_button_and_others_have_not(client, viewer, int8):
    client.force_login(viewer)
    version, other = int8(), making.version("v1")

    assert f"/models/{version.pk}/export/w8a8.tar" in client.get(f"/models/{version.pk}/").content.decode()
    assert "w8a8.tar" not in client.get(f"/models/{other.pk}/").content.decode()
    refused = client.get(f"/models/{other.pk}/export/w8a8.tar", follow=True)
    assert "Only an INT8 version is exported as W8A8" in refused.content.decode()
