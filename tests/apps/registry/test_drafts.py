"""Who guesses ahead for a version: chosen over REST, followed by the inference worker."""

import shutil
from pathlib import Path

import pytest
import torch

from apps import artifacts
from apps.accounts.models import AuditEntry
from apps.registry import services
from apps.registry.drafts import choose_draft
from tests.apps import making
from tests.apps.answering import tokenizer
from workers.engine import SamplingParams
from workers.moe import Decoder, ModelConfig, save_model
from workers.tasks.engines import Engines

pytestmark = pytest.mark.django_db


def test_only_smaller_relatives_of_the_same_tokenizer_may_draft(as_operator, as_viewer):
    version = making.version("v1")
    student = making.version("v1-student", kind="distilled", parent=version, size=300)
    quantized = making.version("v1-student-int8", kind="int8", parent=student, size=100)
    again = making.version("v2", parent=version, size=900)
    graph = making.version("v1-onnx", kind="onnx", parent=version, size=200)
    stranger = making.version("other", size=100)
    respelt = making.version("v1-respelt", parent=version, size=100)
    type(respelt).objects.filter(pk=respelt.pk).update(files=[{**f, "sha256": "0" * 64} for f in respelt.files])

    def asked(of, draft):
        return as_operator.post(f"/api/v1/model-versions/{of.pk}/draft/", {"draft": draft and draft.pk})

    row = as_viewer.get(f"/api/v1/model-versions/{version.pk}/").json()
    assert [each["name"] for each in row["possible_drafts"]] == ["v1-student-int8", "v1-student"]
    assert (row["draft"], row["drafting"]) == (None, None)
    assert as_viewer.get(f"/api/v1/model-versions/{again.pk}/").json()["possible_drafts"][0]["id"] == quantized.pk  # a sister's child
    for refused in (version, again, graph, stranger, respelt):
        answer = asked(version, refused)
        assert (answer.status_code, "cannot draft" in answer.json()["detail"]) == (400, True)
    assert asked(graph, quantized).status_code == 400
    assert as_viewer.post(f"/api/v1/model-versions/{version.pk}/draft/", {"draft": student.pk}).status_code == 403

    assert asked(version, student).json()["draft"] == student.pk
    assert as_viewer.get(f"/api/v1/model-versions/{version.pk}/").json()["drafting"] == {"acceptance": None, "tokens_per_step": None}
    assert asked(version, None).json()["draft"] is None
    entries = AuditEntry.objects.filter(action="version.draft").order_by("id")
    assert [entry.after["draft"] for entry in entries] == ["v1-student", None]


@pytest.fixture
def drafted(settings, operator):
    """A version that answers, and a child that is its copy: every guess is right."""
    config = ModelConfig(
        vocab_size=tokenizer().vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_expert=8, n_experts=2, top_k=1, max_seq_len=64
    )  # fmt: skip
    model = Decoder(config)
    model.initialise(torch.Generator().manual_seed(0))
    result = {"total_parameters": 1000, "active_parameters": 500, "config": config.as_dict()}
    made = []
    for name in ("v1", "v1-student"):
        folder = Path(settings.WORK_ROOT) / name
        save_model(folder, model, tokenizer(), "A test.")
        parent = made[0] if made else None
        made.append(services.register_version(kind="moe", folder=folder, parent=parent, run=None, result=result, actor=None, name=name))
    type(made[1]).objects.filter(pk=made[1].pk).update(artifact_bytes=made[0].artifact_bytes // 3)
    return made


def test_the_worker_opens_a_version_again_with_its_draft_and_counts_what_it_guesses(drafted, operator, as_viewer, monkeypatch):
    monkeypatch.setattr("workers.engine.depth.Depth.now", lambda self, sequences: 3)
    version, student = drafted
    engines = Engines(1, 10**9)

    def ask() -> str:
        with engines.lent(version.pk) as engine:
            text = engine.submit([{"role": "user", "content": "water"}], SamplingParams(max_tokens=12)).result(120).text
        engines.count()
        return text

    try:
        before = ask()
        choose_draft(version=version, draft=student, actor=operator)
        with engines.lent(version.pk) as plain:
            engines.follow_drafts()
            with engines.lent(version.pk) as again:
                assert again is not plain
            assert plain._thread.is_alive()  # closed only when nobody asks it any more
        assert not plain._thread.is_alive()
        assert ask() == before
        figures = as_viewer.get(f"/api/v1/model-versions/{version.pk}/").json()["drafting"]
        assert figures["acceptance"] == 1.0
        assert figures["tokens_per_step"] > 2

        shutil.rmtree(artifacts.local_path(student.folder))
        engines.close()
        assert ask() == before  # a draft that cannot be read stops nobody
    finally:
        engines.close()
