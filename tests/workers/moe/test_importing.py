import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GptOssForCausalLM

from workers.moe.checkpoint import load_model, save_model


def run_import(source, tmp_path):
    """The job as the worker starts it: its last event and its exit code."""
    spec = {"version": 1, "source_folder": str(source), "output_folder": str(tmp_path / "out"), "work_folder": str(tmp_path)}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    child = subprocess.run([sys.executable, "-m", "workers.moe", str(tmp_path / "spec.json")], capture_output=True, text=True, check=False)
    assert child.stdout, child.stderr
    return json.loads(child.stdout.splitlines()[-1]), child.returncode


@pytest.fixture
def source(make_model, tokenizer, tmp_path):
    save_model(tmp_path / "source", make_model(), tokenizer, "# A card of its own\n")
    return tmp_path / "source"


def test_a_folder_that_transformers_wrote_is_imported(source, make_model, tmp_path):
    theirs = GptOssForCausalLM.from_pretrained(source)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")  # in shards, as large ones come
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    for name in ("tokenizer.json", "README.md"):
        (tmp_path / "theirs" / name).write_bytes((source / name).read_bytes())

    event, code = run_import(tmp_path / "theirs", tmp_path)

    assert code == 0
    assert event["result"]["kind"] == "moe"
    model, _ = load_model(tmp_path / "out")
    assert event["result"]["total_parameters"] == sum(p.numel() for p in make_model().parameters())
    assert event["result"]["active_parameters"] < event["result"]["total_parameters"]
    assert event["result"]["config"]["n_experts"] == 4
    assert (tmp_path / "out" / "README.md").read_text() == "# A card of its own\n"
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() <= 1e-4


def test_an_architecture_we_cannot_read_is_refused_with_those_we_can(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    event, code = run_import(source, tmp_path)
    assert code == 1
    assert "'gpt2' is not supported; these are: gpt_oss, glm4_moe, llama" in event["message"]
    assert not (tmp_path / "out").exists()


def test_positions_of_a_kind_we_cannot_compute_are_refused_by_name(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rope_scaling": {"rope_type": "longrope", "factor": 4.0}}))
    event, code = run_import(source, tmp_path)
    assert code == 1
    assert "'longrope' are not supported; default, linear, llama3, yarn are" in event["message"]


def test_a_tokenizer_that_ends_no_answer_is_refused(source, tmp_path):
    Tokenizer(models.BPE()).save(str(source / "tokenizer.json"))
    event, code = run_import(source, tmp_path)
    assert code == 1
    assert "names no token that ends an answer" in event["message"]


def test_weights_that_are_not_numbers_are_refused(make_model, tokenizer, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    save_model(tmp_path / "source", model, tokenizer, "A test.")
    event, code = run_import(tmp_path / "source", tmp_path)
    assert code == 1
    assert "not a number" in event["message"]
