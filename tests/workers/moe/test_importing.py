import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.workers.moe.test_foreign import CHATML, byte_level
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


def test_another_familys_model_in_bf16_comes_with_its_own_turns_and_leaves_as_it_came(tmp_path):
    source = tmp_path / "source"
    config = Qwen3MoeConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12, moe_intermediate_size=16,
        num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, max_position_embeddings=128,
    )  # fmt: skip
    theirs = Qwen3MoeForCausalLM(config).bfloat16()
    theirs.save_pretrained(source, max_shard_size="40KB")
    byte_level().save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}))
    (source / "chat_template.jinja").write_text(CHATML)

    event, code = run_import(source, tmp_path)

    assert code == 0, event
    assert event["result"]["config"]["qk_norm"] == "head"
    assert {str(t.dtype) for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {"torch.bfloat16"}
    again, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.config.model_type == "qwen3_moe"
    messages = [{"role": "user", "content": "What is photosynthesis?"}]
    expected = AutoTokenizer.from_pretrained(source).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == expected
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wide = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        assert (again(tokens).logits - wide(tokens).logits).abs().max() <= 1e-4


def test_a_chat_template_that_fails_is_told_before_anything_is_written(source, tmp_path):
    byte_level().save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": "{{ raise_exception('no') }}"}))
    event, code = run_import(source, tmp_path)
    assert (code, "chat template" in event["message"]) == (1, True)
    assert not (tmp_path / "out").exists()


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
