"""Small randomly initialised models of `transformers`, as it saves them, opened by our one decoder, and saved again."""

import json

import pytest
import torch
import transformers

from workers.engine.runner import Chunk
from workers.engine.torch_runner import TorchRunner
from workers.moe.checkpoint import load_model, save_model
from workers.moe.config import ModelConfig

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "beta_slow": 1.0}
DEEPSEEK = {
    "moe_intermediate_size": 16, "intermediate_size": 24, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "num_key_value_heads": 4, "kv_lora_rank": 12, "q_lora_rank": 20, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12, "v_head_dim": 10, "routed_scaling_factor": 2.5,
}  # fmt: skip
GLM = {
    "moe_intermediate_size": 16, "intermediate_size": 24, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3, "head_dim": 16,
    "first_k_dense_replace": 1,
}  # fmt: skip
GPT_OSS = {"intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
QWEN = {"moe_intermediate_size": 16, "intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3, "head_dim": 12}

# Name → class, what its configuration changes, and the features that this must have switched on in ours.
FAMILIES = {
    "gpt_oss": (
        "GptOss", GPT_OSS | {"sliding_window": 6, "swiglu_limit": 0.8, "rope_parameters": YARN | {"truncate": False}},
        {"attention_sinks", "sliding_layers", "attention_bias", "attention_out_bias", "expert_bias", "swiglu_limit", "swiglu_alpha", "rope_scaling"},
    ),
    "gpt_oss, without attention biases": ("GptOss", GPT_OSS | {"sliding_window": 5, "attention_bias": False}, {"attention_sinks", "rope_scaling"}),
    "deepseek_v3": (
        "DeepseekV3", DEEPSEEK | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
        {"kv_rank", "q_rank", "router_groups", "routed_scaling", "rope_scaling"},
    ),
    "deepseek_v3, plain queries, halves apart": (
        "DeepseekV3", DEEPSEEK | {"q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False}, {"kv_rank", "norm_top_k"},
    ),
    "deepseek_v3, dense throughout": ("DeepseekV3", DEEPSEEK | {"first_k_dense_replace": 3}, {"kv_rank"}),
    "qwen3_moe": ("Qwen3Moe", QWEN | {"norm_topk_prob": True, "attention_bias": True}, {"qk_norm", "attention_bias"}),
    "qwen3_moe, a dense layer, weights as they are, sliding": (
        "Qwen3Moe", QWEN | {"mlp_only_layers": [0], "norm_topk_prob": False, "use_sliding_window": True, "sliding_window": 7},
        {"qk_norm", "norm_top_k", "sliding_layers"},
    ),
    "mixtral": ("Mixtral", {"intermediate_size": 16, "num_local_experts": 4}, set()),
    "mixtral, sliding": ("Mixtral", {"intermediate_size": 16, "num_local_experts": 4, "sliding_window": 4}, {"sliding_layers"}),
    "olmoe": ("Olmoe", {"intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3, "clip_qkv": 0.7}, {"qk_norm", "clip_qkv", "norm_top_k"}),
    "glm4_moe": (
        "Glm4Moe", GLM | {"n_group": 4, "topk_group": 2, "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 1.7},
        {"qk_norm", "rotary_share", "attention_bias", "router_groups", "routed_scaling"},
    ),
    "llama": (
        "Llama", {"intermediate_size": 24, "attention_bias": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}}, {"attention_bias", "attention_out_bias", "rope_scaling"},
    ),
    "llama, linear": ("Llama", {"intermediate_size": 24, "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}}, {"rope_scaling"}),
    "qwen3": ("Qwen3", {"intermediate_size": 24, "head_dim": 12}, {"qk_norm"}),
}  # fmt: skip

PROMPT = torch.randint(2, 64, (1, 17), generator=torch.Generator().manual_seed(4))


def make(name, **changes):
    """A model of `transformers` whose biases, norms and sinks are not what they begin as, so that each of them matters."""
    kind, own, _ = FAMILIES[name]
    shape = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    special = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": None, "initializer_range": 0.3}
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**shape, **special, **own, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        for name_, buffer in model.named_buffers():
            if "e_score_correction_bias" in name_:
                buffer.copy_(torch.randn(buffer.shape) * 0.3)
    return model.eval()


@pytest.fixture(params=FAMILIES)
def family(request, tokenizer, tmp_path):
    theirs = make(request.param)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs", 64)
    ours, _ = load_model(tmp_path / "theirs")
    return request.param, theirs, ours


@torch.no_grad()
def logits(model, tokens):
    out = model(tokens)
    return getattr(out, "logits", out)


def test_the_logits_are_those_of_transformers(family):
    name, theirs, ours = family
    assert FAMILIES[name][2] <= set(ours.config.special_features)
    tokens = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(5))
    expected = logits(theirs, tokens)
    assert expected.std() > 0.1
    assert (logits(ours, tokens) - expected).abs().max() <= 1e-4


def test_decoding_over_a_cache_gives_the_tokens_of_transformers(family):
    _, theirs, ours = family
    with torch.no_grad():
        expected = theirs.generate(PROMPT, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)[0, PROMPT.shape[1] :].tolist()
    runner = TorchRunner(ours, max_batch=3, max_seq_len=64)
    prompt = PROMPT[0].tolist()
    other = [7] * 25  # in company, and in parts: another sequence decodes beside it
    runner.forward([Chunk(0, 0, other[:20])])
    runner.forward([Chunk(2, 0, prompt[:5]), Chunk(0, 20, other[20:21])])
    row, given, at = runner.forward([Chunk(2, 5, prompt[5:])])[0], [], len(prompt)
    for _ in range(20):
        given.append(int(row.argmax()))
        row = runner.forward([Chunk(0, 21, [9]), Chunk(2, at, given[-1:])])[1]
        at += 1
    assert given == expected
    assert len(set(given)) > 2


def test_saved_again_it_is_of_the_same_family_and_the_same_model(family, tokenizer, tmp_path):
    _, theirs, ours = family
    save_model(tmp_path / "again", ours, tokenizer, "A test.")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"] and not report["missing_keys"]
    assert again.config.model_type == theirs.config.model_type
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(6))
    assert (logits(again, tokens) - logits(theirs, tokens)).abs().max() <= 1e-4
    assert load_model(tmp_path / "again")[0].config == ours.config
    assert ModelConfig.from_dict(json.loads(json.dumps(ours.config.as_dict()))) == ours.config


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "olmoe"])
def test_gradients_are_those_of_transformers(name, tokenizer, tmp_path):
    """In training: of the input's side (the embedding) and of what only these features have."""
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs", 64)
    ours, _ = load_model(tmp_path / "theirs")
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(7))
    theirs.set_attn_implementation("eager")
    theirs(tokens).logits.logsumexp(-1).sum().backward()
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()  # as packed rows have one
    for given in (None, mask):
        ours.zero_grad()
        ours(tokens, mask=given).logsumexp(-1).sum().backward()
        pairs = {
            "embedding.weight": "model.embed_tokens.weight",
            "blocks.1.feed_forward_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        }
        pairs |= {
            "gpt_oss": {"blocks.0.attention.sinks": "model.layers.0.self_attn.sinks", "blocks.1.feed_forward.experts.down_bias": "model.layers.1.mlp.experts.down_proj_bias"},
            "deepseek_v3": {"blocks.1.attention.kv_up.weight": "model.layers.1.self_attn.kv_b_proj.weight", "blocks.0.attention.kv_norm.weight": "model.layers.0.self_attn.kv_a_layernorm.weight"},
            "olmoe": {"blocks.0.attention.k_norm.weight": "model.layers.0.self_attn.k_norm.weight"},
        }[name]  # fmt: skip
        mine, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
        for our_name, their_name in pairs.items():
            expected = others[their_name].grad
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(mine[our_name].grad, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)
