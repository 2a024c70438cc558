"""An INT8 folder is a compressed-tensors checkpoint: that package, and transformers, are the judges."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssForCausalLM

from workers.compression import quantization
from workers.compression.int8 import run_int8
from workers.compression.runners import open_runner
from workers.compression.w8a8_export import export
from workers.engine import Chunk
from workers.moe import export_tensors, load_model
from workers.protocol import JobError


@pytest.fixture
def int8(save, spec):
    def make(model) -> Path:
        run_int8(made := spec("int8", save(model)))
        return made.output_folder

    return make


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _by_compressed_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """In FP32: it multiplies in the type of the scales."""
    stored = load_file(folder / "model.safetensors")
    return CompressedTensorsDequantizer(folder, dtype=torch.float32).validate(
        {n: t.float() if n.endswith("_scale") else t for n, t in stored.items()}
    )


def test_compressed_tensors_reads_the_weights_that_we_read(any_model, int8):
    folder = int8(any_model)
    described = QuantizationConfig.model_validate(_config(folder)["quantization_config"])
    linear = described.config_groups["group_0"]
    assert (linear.weights.num_bits, linear.weights.strategy, linear.input_activations.strategy) == (8, "channel", "token")
    assert (linear.input_activations.dynamic, described.format, described.quantization_status) == (True, "int-quantized", "compressed")
    theirs = _by_compressed_tensors(folder)
    ours, _ = load_model(folder)
    for name, wanted in quantization.encode(export_tensors(ours.config, ours.state_dict()), kept=_matrices(ours)).items():
        torch.testing.assert_close(theirs[name].float(), wanted.float(), rtol=1e-6, atol=0)


def _matrices(model) -> list[str]:
    return [name for name in export_tensors(model.config, model.state_dict()) if quantization.is_quantized(name)]


def test_each_matrix_is_int8_with_outputs_first_and_a_scale_for_each(any_model, int8):
    stored = load_file(int8(any_model) / "model.safetensors")
    matrices = [name for name in stored if name + "_scale" in stored]
    assert any(".experts.3.down_proj.weight" in name for name in matrices) == any_model.config.is_moe
    for name in matrices:
        assert stored[name].dtype == torch.int8
        assert stored[f"{name}_scale"].shape == (stored[name].shape[0], 1)


def test_folders_of_earlier_versions_open_with_the_same_answers(make_model, int8, tmp_path):
    folder = int8(make_model())
    expected = _logits(folder)
    stored, described = load_file(folder / "model.safetensors"), _config(folder)
    for prefix in (f"model.layers.{n}.mlp.experts." for n in range(2)):  # as they were: (experts, inputs, outputs), gate and up interleaved
        for part in ("weight", "weight_scale"):
            apart = [{p: stored.pop(f"{prefix}{e}.{p}_proj.{part}").T for p in ("gate", "up", "down")} for e in range(4)]
            end = part.removeprefix("weight")
            stored[f"{prefix}gate_up_proj{end}"] = torch.stack([torch.stack([e["gate"], e["up"]], -1).flatten(1) for e in apart]).contiguous()
            stored[f"{prefix}down_proj{end}"] = torch.stack([e["down"] for e in apart]).contiguous()
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in described.items() if k != "quantization_config"} | {"storage": _without(described["storage"])})
    )
    np.testing.assert_array_equal(_logits(folder), expected)
    decoded, _ = load_model(folder)
    assert torch.isfinite(decoded(torch.tensor([[3, 4, 5]]))).all()
    with pytest.raises(JobError, match="earlier version"):
        export(folder, tmp_path / "exported")


def _without(storage: dict) -> dict:
    return {name: value for name, value in storage.items() if name != "experts_apart"}


def _logits(folder: Path) -> np.ndarray:
    with closing(open_runner(folder, threads=1, max_batch=1, max_seq_len=96)) as runner:
        return runner.forward([Chunk(0, 0, [3, 14, 15, 92, 65])]).copy()


def test_each_group_of_the_export_rounds_activations_as_vllm_demands_of_int8(any_model, int8, tmp_path):
    """Its CompressedTensorsConfig.from_config asserts that a group without input_activations holds floating-point weights."""
    folder = int8(any_model)
    export(folder, tmp_path / "exported")
    kept, exported = (QuantizationConfig.model_validate(_config(f)["quantization_config"]).config_groups for f in (folder, tmp_path / "exported"))
    assert [group.targets for group in exported.values()] == [["Linear"]]
    assert all(group.input_activations is not None for group in exported.values())
    assert [group.targets for group in kept.values()] == [["Linear"], ["Embedding"]]  # as compressed-tensors decodes what lies here


TOKENS = torch.tensor([[3, 14, 15, 92, 65, 35]])


def _with_embeddings_in_bf16(folder: Path):
    model, _ = load_model(folder)
    with torch.no_grad():
        for matrix in (model.embedding.weight, model.head.weight):
            matrix.copy_(matrix.bfloat16().float())
    return model


def test_transformers_answers_by_the_export_of_a_dense_model_as_we_do(make_model, int8, tmp_path):
    folder = int8(make_model(n_experts=0, top_k=0, d_expert=0, d_dense=56))
    export(folder, tmp_path / "exported")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    with torch.inference_mode():
        found, wanted = theirs(TOKENS).logits, _with_embeddings_in_bf16(folder)(TOKENS)
    assert (found - wanted).abs().mean() < 0.05 * wanted.std()  # they round activations to 8 bits, this reference does not
    assert torch.equal(load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"],
                       load_file(tmp_path / "exported/model.safetensors")["model.layers.0.self_attn.q_proj.weight"])  # fmt: skip


def test_gpt_oss_with_the_alpha_that_servers_fix_answers_by_the_export_as_we_do(make_model, int8, tmp_path):
    folder = int8(make_model())
    export(folder, tmp_path / "exported")
    described, tensors = _config(tmp_path / "exported"), _by_compressed_tensors(tmp_path / "exported")
    assert (described["swiglu_alpha"], "storage" in described) == (1.702, False)
    for prefix in (f"model.layers.{n}.mlp.experts." for n in range(2)):
        for kind, name in (("weight", "proj"), ("bias", "proj_bias")):
            parts = [[tensors.pop(f"{prefix}{e}.{p}_proj.{kind}").float() for p in ("gate", "up", "down")] for e in range(4)]
            tensors[f"{prefix}gate_up_{name}"] = torch.stack([torch.stack([gate, up], 1).flatten(0, 1).movedim(0, -1) for gate, up, _ in parts])
            tensors[f"{prefix}down_{name}"] = torch.stack([down.movedim(0, -1) for _, _, down in parts])
    config = {name: value for name, value in described.items() if name != "quantization_config"} | {"swiglu_limit": 1e9}
    theirs = GptOssForCausalLM(GptOssForCausalLM.config_class.from_dict(config)).eval().float()
    theirs.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    with torch.inference_mode():
        found, wanted = theirs(TOKENS).logits, _with_embeddings_in_bf16(folder)(TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
