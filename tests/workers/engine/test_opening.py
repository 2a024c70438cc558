import json
import subprocess
import sys
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.engine import PromptTooLong, SamplingParams, UnusableModel, open_engine, opening, torch_runner
from workers.moe import ChatTokenizer, generate, load_model

SPECIAL = {
    "attention_sinks": True,
    "expert_bias": True,
    "swiglu_offset": 1.0,
    "swiglu_alpha": 1.7,
    "swiglu_limit": 2.0,
    "sliding_window": 4,
}  # what compiled code does not express


def copy(folder, tmp_path):
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    return copied


def test_importing_the_engine_does_not_import_torch():
    program = "import sys, workers.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_name(folder, tmp_path, missing):
    broken = copy(folder, tmp_path)
    (broken / missing).unlink()
    with pytest.raises(UnusableModel, match=missing):
        open_engine(broken)


def test_damaged_weights_are_refused(folder, tmp_path):
    broken = copy(folder, tmp_path)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-64])
    with pytest.raises(UnusableModel, match="damaged"):
        open_engine(broken)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    other = copy(folder, tmp_path)
    ChatTokenizer.train([f"w{n}x" for n in range(2000)] * 2, 2000).save(other, 96)
    with pytest.raises(UnusableModel, match=r"tokens, its model only"):
        open_engine(other)


def test_an_architecture_of_another_kind_is_refused_with_those_that_are_known(folder, tmp_path):
    other = copy(folder, tmp_path)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"gpt_oss"', '"bert"'))
    with pytest.raises(UnusableModel, match="gpt_oss"):
        open_engine(other)


A_TOKEN = 2 * 2 * 2 * 8 * 4  # keys and values, 2 layers, 2 heads of 8, FP32


@pytest.fixture
def full_slots(make_folder, monkeypatch):
    """A folder that is served as on a GPU: by the modules, all slots with their memory from the beginning."""
    monkeypatch.setattr(opening, "_fills_slots", lambda folder, device: False)
    monkeypatch.setattr(torch_runner, "runner_of", torch_runner.TorchRunner)
    return make_folder(**SPECIAL, sliding_layers=(0,))


def test_fewer_slots_are_made_where_keys_and_values_would_take_too_much(full_slots):
    three = 3 * 96 * A_TOKEN
    with closing(open_engine(full_slots, max_batch=32, cache_bytes=three + 100)) as engine:
        stats = engine.stats()
    assert (stats.slots, stats.cache_total_bytes) == (3, three)


def test_a_slot_is_shorter_where_not_even_one_of_the_whole_length_fits_and_what_is_longer_is_refused(full_slots):
    with closing(open_engine(full_slots, max_batch=32, cache_bytes=40 * A_TOKEN + 100)) as engine:
        stats = engine.stats()
        assert (stats.slots, stats.cache_total_bytes) == (1, 40 * A_TOKEN)
        with pytest.raises(PromptTooLong, match=r"reads at most 39,"):
            engine.submit([{"role": "user", "content": "zq" * 30}], SamplingParams(max_tokens=1))
        assert engine.submit([{"role": "user", "content": "What?"}], SamplingParams(max_tokens=90)).result(30).finish_reason == "length"


def test_what_the_compiled_decoder_does_not_express_is_served_by_the_modules_with_the_same_answers(make_folder):
    folder = make_folder(**SPECIAL, sliding_layers=(0,))
    model, tokenizer = load_model(folder)
    engine = open_engine(folder, max_batch=2)
    assert type(engine._runner).__name__ == "FillingTorchRunner"
    question = "What is photosynthesis?"
    try:
        answer = engine.submit([{"role": "user", "content": question}], SamplingParams(max_tokens=20, temperature=0.0)).result().text
    finally:
        engine.close()
    assert answer == generate(model, tokenizer, question, max_tokens=20)


def assert_compiled_and_like(folder, model, tokenizer):
    engine = open_engine(folder, max_batch=2)
    assert type(engine._runner).__name__ == "FusedRunner"
    try:
        answer = engine.submit([{"role": "user", "content": "Who wrote it?"}], SamplingParams(max_tokens=20, temperature=0.0)).result().text
    finally:
        engine.close()
    assert answer == generate(model, tokenizer, "Who wrote it?", max_tokens=20)


def test_a_mixtral_is_served_by_the_compiled_decoder(make_folder):
    folder = make_folder(router_bias=False)
    assert '"mixtral"' in (folder / "config.json").read_text()
    model, tokenizer = load_model(folder)
    assert_compiled_and_like(folder, model, tokenizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_served_by_the_compiled_decoder(folder, tmp_path, dtype):
    narrow = copy(folder, tmp_path)
    tensors = load_file(narrow / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.abs().max() < 60_000:  # the sinks that are none
            tensors[name] = tensor.to(dtype)
    save_file(tensors, narrow / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = load_model(narrow)
    assert_compiled_and_like(narrow, model, tokenizer)


def test_a_quantized_folder_is_decoded_or_refused_never_taken_for_what_its_bits_say(make_folder, tmp_path):
    folder = copy(make_folder(router_bias=False), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[f"{name}_scale_inv"] = tensors[name].abs().max().reshape(1, 1) / 448
    tensors[name] = (tensors[name] / tensors[f"{name}_scale_inv"]).to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnusableModel, match=r"F8_E4M3, and config\.json names no quantization"):
        open_engine(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    model, tokenizer = load_model(folder)
    engine = open_engine(folder, max_batch=2)
    try:
        answer = engine.submit([{"role": "user", "content": "Who wrote it?"}], SamplingParams(max_tokens=20, temperature=0.0)).result().text
    finally:
        engine.close()
    assert answer == generate(model, tokenizer, "Who wrote it?", max_tokens=20)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UnusableModel, match="quantized as awq"):
        open_engine(folder)
