import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from workers.moe.checkpoint import BrokenModel, describe_files, load_model, save_model
from workers.moe.layouts import UnsupportedModel

SHAPES = {
    "gpt_oss": {},
    "gpt_oss, untied": {"tie_embeddings": False, "rope_theta": 5000.0},
    "glm4_moe": {"router": "sigmoid"},
    "glm4_moe, shared and dense": {"router": "sigmoid", "n_shared_experts": 2, "first_dense_layers": 1, "d_dense": 24},
    "llama": {"n_experts": 0, "top_k": 0, "d_dense": 40},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_same_logits(make_model, tokenizer, tmp_path, shape):
    model = make_model(**SHAPES[shape])
    save_model(tmp_path / "model", model, tokenizer, "A test.")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert theirs.config.model_type == shape.split(",")[0]
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = torch.randint(0, 300, (3, 24), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_read_back_is_the_same_model(make_model, tokenizer, tmp_path, shape):
    model = make_model(**SHAPES[shape])
    save_model(tmp_path / "model", model, tokenizer, "A test.")
    again, _ = load_model(tmp_path / "model")
    assert again.config == model.config.with_(d_expert=again.config.d_expert)
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_sinks_that_config_json_does_not_announce_are_refused(make_model, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_model(folder, make_model(), tokenizer, "A test.")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.sinks"][2] = 0.5
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="sinks"):
        load_model(folder)


def test_damaged_weights_are_named(make_model, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_model(folder, make_model(), tokenizer, "A test.")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BrokenModel, match="damaged"):
        load_model(folder)


def test_files_are_described_with_their_checksums(make_model, tokenizer, tmp_path):
    save_model(tmp_path / "model", make_model(), tokenizer, "A test.")
    names = [f["name"] for f in describe_files(tmp_path / "model")]
    assert names == ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing temporary is left
