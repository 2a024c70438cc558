"""What a real child tells, from the first line to the result."""

import json

from workers.moe import load_model
from workers.moe.config import ModelConfig


def test_a_child_tells_its_steps_samples_and_result(make_spec, run_child):
    spec = make_spec(model=None, preset="nano", vocab_size=400, steps=30, micro_batch=8, precision="bf16", sample_every_seconds=1e-3)
    child = run_child(spec)

    assert child.events[0]["event"] == "progress"  # before PyTorch is loaded
    step = child.of("step")[-1]
    assert step["step"] == 30 and step["loss"] < child.of("step")[0]["loss"]
    assert len(step["expert_load"]) == 3 and all(abs(sum(layer) - 1) < 1e-3 for layer in step["expert_load"])
    assert step["memory_bytes"] > 50e6 and step["tokens_per_second"] > 0 and step["grad_norm"] > 0
    assert child.of("sample")[0]["reference"] == "gold is element 0."

    result = child.result
    model, _ = load_model(spec.output_folder)
    assert ModelConfig.from_dict(result["config"]) == model.config and result["kind"] == "moe"
    assert result["total_parameters"] == sum(p.numel() for p in model.parameters()) > result["active_parameters"]
    assert (result["steps"], result["tokens"]) == (30, step["tokens"])
    assert result["domains"] == ["chemistry", "general", "physics"]
    for layer in result["expert_domain"]:  # experts × domains
        assert len(layer) == 8
        assert all(abs(sum(column) - 1) < 1e-2 for column in zip(*layer, strict=True))
    layers = result["specialisation"]["layers"]
    assert len(layers) == 3 and all(0 <= layer["bits"] <= result["specialisation"]["domain_entropy"] for layer in layers)
    worst = max(layer["max_over_mean"] for layer in result["expert_balance"])
    assert worst == result["expert_load_max_over_mean"] == step["expert_load_max_over_mean"]
    assert 0 <= result["expert_load_min_over_mean"] == step["expert_load_min_over_mean"] <= 1
    assert json.dumps(result)


def test_a_dense_model_trains_too(make_spec, run_child, tmp_path):
    dense = ModelConfig(400, 16, 2, 2, 1, 8, 0, 0, 0, d_dense=32, max_seq_len=64).as_dict()
    result = run_child(make_spec(model=dense, steps=3)).result
    assert result["kind"] == "dense" and result["total_parameters"] == result["active_parameters"]
    assert result["expert_load"] == [] and result["expert_load_max_over_mean"] is None
    assert result["specialisation"] is None and result["domains"] == []


def test_a_child_that_cannot_work_says_so_and_exits_with_one(make_spec, run_child, dataset):
    (dataset / "train.jsonl").write_text("")
    child = run_child(make_spec())
    assert child.returncode == 1
    assert "no questions, claims or documents" in child.of("error")[0]["message"]
