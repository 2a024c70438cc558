"""Quantized folders as people publish them, against the dequantization of `transformers` and `compressed-tensors`."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.workers.moe.test_families import DEEPSEEK, GPT_OSS, QWEN
from tests.workers.moe.test_loading import MEASURE
from workers.moe.checkpoint import BrokenModel, load_model, read_config, save_model
from workers.moe.importing import ImportSpec, import_folder
from workers.moe.layouts import UnsupportedModel
from workers.moe.quantized import mxfp4, scaled

SHAPE = {
    "vocab_size": 300, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip
# Widths that are whole blocks of 128: transformers reads no others.
WIDE = {"head_dim": 64, "moe_intermediate_size": 128, "intermediate_size": 256}
LATENT = {"q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 128, "qk_nope_head_dim": 32, "v_head_dim": 32, "num_key_value_heads": 4}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
NOT_QUANTIZED = ("norm", "embed", "lm_head", ".mlp.gate.", "router", "bias")


def compressed(kind: str, strategy: str, form: str = "") -> dict:
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": strategy}
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    form = form or f"{kind}-quantized"
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def in_blocks(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.unfold(0, 128, 128).unfold(1, 128, 128).abs().amax((-1, -2)) / 448
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return {"": (weight / spread).to(torch.float8_e4m3fn), "_scale_inv": scale}


def by_compressed_tensors(said: dict):
    args = QuantizationArgs(**said["config_groups"]["group_0"]["weights"])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def quantize(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        most = weight.abs().amax(1, keepdim=True) if args.strategy == "channel" else weight.abs().max()[None]
        scale = most / (127 if args.type == "int" else 448)
        made = BaseCompressor.get_value_from_registry(said["format"]).compress({"weight": weight, "weight_scale": scale}, scheme)
        return {"": made["weight"], "_scale": made["weight_scale"]}

    return quantize


def decompress(folder, said: dict) -> None:
    """The folder as compressed-tensors decompresses it: transformers reads no experts of 8-bit integers."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**said["config_groups"]["group_0"]["weights"]))
    compressor = BaseCompressor.get_value_from_registry(said["format"])
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_scale")]:
        weight = name.removesuffix("_scale")
        tensors[weight] = compressor.decompress({"weight": tensors[weight], "weight_scale": tensors.pop(name)}, scheme)["weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))


def to_mxfp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Any bits will do: of the weight only the shape."""
    experts, inputs, outputs = weight.shape
    generator = torch.Generator().manual_seed(outputs)
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
    return {"_blocks": blocks, "_scales": torch.randint(121, 125, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=generator)}


CASES = {
    "gpt_oss, mxfp4": ("GptOss", GPT_OSS | {"intermediate_size": 64, "sliding_window": 6}, {"quant_method": "mxfp4"}, to_mxfp4, Mxfp4Config),
    "deepseek_v3, fp8": ("DeepseekV3", DEEPSEEK | WIDE | LATENT | {"head_dim": 128}, FP8, in_blocks, FineGrainedFP8Config),
    "qwen3_moe, fp8": ("Qwen3Moe", QWEN | WIDE, FP8, in_blocks, FineGrainedFP8Config),
    **{
        f"qwen3_moe, {kind} by {strategy}": ("Qwen3Moe", QWEN | WIDE, said := compressed(kind, strategy), by_compressed_tensors(said), CompressedTensorsConfig)
        for kind in ("int", "float")
        for strategy in ("channel", "tensor")
    },
}  # fmt: skip


def quantize_folder(folder, said: dict, quantize) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        experts_alone = said["quant_method"] == "mxfp4" and tensor.dim() != 3
        if any(part in name for part in NOT_QUANTIZED) or tensor.dim() < 2 or experts_alone:
            tensors[name] = tensor
        else:
            tensors |= {f"{name}{ending}": value.contiguous() for ending, value in quantize(tensor).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_the_dequantized_model_of_transformers(case, tokenizer, tmp_path):
    kind, own, said, quantize, config_class = CASES[case]
    torch.manual_seed(2)
    folder = tmp_path / "model"
    original = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**{**SHAPE, **own, "initializer_range": 0.1}))
    original.save_pretrained(folder)
    tokenizer.save(folder, 64)
    quantize_folder(folder, said, quantize)
    ours, _ = load_model(folder)
    if said.get("format") == "int-quantized":
        decompress(folder, said)
        more = {}
    else:
        more = {"quantization_config": config_class(**{k: v for k, v in said.items() if k != "quant_method"}, dequantize=True)}
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **more)
    assert not report["missing_keys"] and not report["mismatched_keys"]

    tokens = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, given, before = theirs(tokens).logits, ours(tokens), original.eval()(tokens).logits
    size = expected.abs().max()
    assert (given - expected).abs().max() <= 2e-5 * size
    assert (before - expected).abs().max() > 1e-3 * size  # quantization is not nothing


def test_every_4_bits_under_every_scale_are_what_transformers_reads():
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 1, 16).repeat(1, 1, 253, 1)
    scales = torch.arange(1, 254, dtype=torch.uint8).expand(1, 16, 253).contiguous()
    assert torch.equal(mxfp4(blocks, scales), convert_moe_packed_tensors(blocks, scales))


def test_blocks_that_the_last_row_and_column_cut_have_their_own_scales():
    """576 rows, as DeepSeek-V3's keys and values have, are four blocks and a half."""
    generator = torch.Generator().manual_seed(0)
    weight, scale = torch.randn(576, 200, generator=generator).to(torch.float8_e4m3fn), torch.rand(5, 2, generator=generator)
    expected = torch.tensor([[float(weight[r, c]) * float(scale[r // 128, c // 128]) for c in range(0, 200, 9)] for r in range(0, 576, 9)])
    torch.testing.assert_close(scaled(weight, scale, (128, 128))[::9, ::9], expected, atol=0, rtol=1e-6)
    with pytest.raises(ValueError, match="do not fit"):
        scaled(weight, scale[:4], (128, 128))


UNREADABLE = {
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8 with fmt e5m2": FP8 | {"fmt": "e5m2"},
    "compressed-tensors nvfp4-pack-quantized": compressed("float", "tensor", "nvfp4-pack-quantized"),
    "compressed-tensors int-quantized by group": compressed("int", "group"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_name(what, make_model, tokenizer, tmp_path):
    save_model(tmp_path / "source", make_model(), tokenizer, "A test.")
    path = tmp_path / "source" / "config.json"
    said = UNREADABLE[what]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": said}))
    with pytest.raises(UnsupportedModel, match=f"quantized as {what} cannot be read; MXFP4, FP8"):
        read_config(tmp_path / "source")


def test_bits_without_their_scales_are_damage(make_model, tokenizer, tmp_path):
    save_model(tmp_path / "model", make_model(), tokenizer, "A test.")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    with pytest.raises(BrokenModel, match=r"q_proj\.weight is stored as float8_e4m3fn, without a scale"):
        load_model(tmp_path / "model")


def test_an_imported_quantized_folder_becomes_a_plain_one(tokenizer, tmp_path):
    _, own, said, quantize, _ = CASES["gpt_oss, mxfp4"]
    transformers.GptOssForCausalLM(transformers.GptOssConfig(**{**SHAPE, **own, "vocab_size": tokenizer.vocab_size})).save_pretrained(
        tmp_path / "source"
    )
    tokenizer.save(tmp_path / "source", 64)
    quantize_folder(tmp_path / "source", said, quantize)
    import_folder(ImportSpec(version=1, source_folder=tmp_path / "source", output_folder=tmp_path / "out", work_folder=tmp_path))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    ours, again = load_model(tmp_path / "source")[0], load_model(tmp_path / "out")[0]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_opening_takes_the_memory_of_the_opened_weights(make_model, tokenizer, tmp_path):
    big = {"d_model": 256, "n_heads": 4, "head_dim": 64, "d_expert": 512, "n_layers": 6, "n_experts": 12, "tie_embeddings": False, "rope_theta": 5e3}
    gpt_oss = {
        "attention_bias": True, "attention_out_bias": True, "attention_sinks": True, "expert_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
        "swiglu_offset": 1.0,
    }  # fmt: skip
    save_model(tmp_path / "warm", make_model(), tokenizer, "A test.")
    save_model(tmp_path / "mxfp4", make_model(**big, **gpt_oss), tokenizer, "A test.")
    save_model(tmp_path / "fp8", make_model(**big, router_bias=False, qk_norm="head"), tokenizer, "A test.")
    (tmp_path / "bf16").mkdir()
    for file in (tmp_path / "fp8").iterdir():
        (tmp_path / "bf16" / file.name).write_bytes(file.read_bytes())
    narrow = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "bf16" / "model.safetensors").items()}
    save_file(narrow, tmp_path / "bf16" / "model.safetensors")
    quantize_folder(tmp_path / "mxfp4", {"quant_method": "mxfp4"}, to_mxfp4)
    quantize_folder(tmp_path / "fp8", FP8, in_blocks)
    folders = [str(tmp_path / name) for name in ("mxfp4", "fp8", "bf16")]
    child = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "warm"), *folders], capture_output=True, text=True, check=True)
    for name, measured in json.loads(child.stdout).items():
        assert measured["weights"] > 100_000_000
        # One layer's experts may be held in BF16 besides, of six, and some megabytes are the process's; a second copy would make it 2.
        assert measured["peak"] < 1.4 * measured["weights"], name
