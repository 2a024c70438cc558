"""Softmax routers: `gpt_oss`, `mixtral`, `qwen3_moe`, `olmoe`.

Our own softmax router, with a bias, is `gpt_oss` exactly: softmax over all, top-K, renormalised = softmax over the top-K logits. Its
peculiarities switch off where the model has none: alpha 1, no clamp, bias −1 on `up` (it adds 1), sinks at −1e9, full attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.moe.config import ModelConfig
from workers.moe.layouts.decoder import (
    attention_entries,
    both_biases,
    describe_decoder,
    expert_entries,
    network_entries,
    read_decoder,
    require,
    router_entries,
    sliding,
    walk,
)  # fmt: skip
from workers.moe.layouts.parts import Entries, Entry, Fixed, Part, UnsupportedModel, whole

# Large enough never to clamp or to be attended to, small enough for FP32 to stay finite.
NO_LIMIT = 1e9

MIXTRAL_NAMES = ("w1", "w3", "w2")


# -- gpt_oss


def describe_gpt_oss(config: ModelConfig) -> dict[str, Any]:
    return {
        **describe_decoder(config, "gpt_oss", "GptOssForCausalLM"),
        "intermediate_size": config.d_expert,
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.top_k,
        "experts_per_token": config.top_k,
        "swiglu_alpha": config.swiglu_alpha,
        "swiglu_limit": config.swiglu_limit or NO_LIMIT,
        "layer_types": ["sliding_attention" if n in config.sliding_layers else "full_attention" for n in range(config.n_layers)],
        "sliding_window": config.sliding_window or config.max_seq_len,  # transformers asks for a width where no layer slides, too
    }


def read_gpt_oss(described: dict[str, Any]) -> ModelConfig:
    d = {"rope_theta": 150_000.0, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True, "sliding_window": 128, **described}
    layers = d.get("layer_types") or ["full_attention" if n % 2 else "sliding_attention" for n in range(d["num_hidden_layers"])]
    slides = tuple(n for n, kind in enumerate(layers) if kind == "sliding_attention")
    ours = (d["swiglu_alpha"], d["swiglu_limit"]) == (1.0, NO_LIMIT)
    peculiar: dict[str, Any] = {} if ours else {
        "attention_sinks": True, "expert_bias": True, "swiglu_offset": 1.0, "swiglu_alpha": d["swiglu_alpha"], "swiglu_limit": d["swiglu_limit"],
    }  # fmt: skip
    return ModelConfig(
        **read_decoder(d), **both_biases(d), **sliding(d, slides), **peculiar, d_expert=d["intermediate_size"], n_experts=d["num_local_experts"],
        top_k=d.get("num_experts_per_tok") or d["experts_per_token"], router="softmax",
    )  # fmt: skip


def gpt_oss_entries(config: ModelConfig, described: dict[str, Any]) -> Entries:
    return walk(config, attention_entries, _gpt_oss_experts)


def _gpt_oss_experts(config: ModelConfig, layer: int) -> Entries:
    """Gate and up are interleaved."""
    yield from router_entries(config, layer, f"model.layers.{layer}.mlp.router.weight", f"model.layers.{layer}.mlp.router.bias")
    ours, theirs = f"blocks.{layer}.feed_forward.experts.", f"model.layers.{layer}.mlp.experts."
    hidden, shape = config.d_expert, (config.n_experts, config.d_model, 2 * config.d_expert)

    def interleaved(name: str) -> tuple[Part, Part]:
        return (
            Part(name, at=(..., slice(0, hidden)), of=(..., slice(0, None, 2))),
            Part(name, at=(..., slice(hidden, None)), of=(..., slice(1, None, 2))),
        )

    yield Entry(f"{ours}gate_up", shape, interleaved(f"{theirs}gate_up_proj"))
    yield whole(f"{ours}down", (config.n_experts, hidden, config.d_model), f"{theirs}down_proj")
    sinks = f"model.layers.{layer}.self_attn.sinks"
    if config.expert_bias:
        yield Entry(f"{ours}gate_up_bias", (config.n_experts, 2 * hidden), interleaved(f"{theirs}gate_up_proj_bias"))
        yield whole(f"{ours}down_bias", (config.n_experts, config.d_model), f"{theirs}down_proj_bias")
        yield whole(f"blocks.{layer}.attention.sinks", (config.n_heads,), sinks)
        return
    nothing = np.zeros((config.n_experts, 2 * hidden), np.float32)
    nothing[:, 1::2] = -1.0
    yield Fixed(f"{theirs}gate_up_proj_bias", nothing)
    yield Fixed(f"{theirs}down_proj_bias", np.zeros((config.n_experts, config.d_model), np.float32))
    yield Fixed(sinks, np.full(config.n_heads, -NO_LIMIT, np.float32))


# -- mixtral


def describe_mixtral(config: ModelConfig) -> dict[str, Any]:
    return {
        **describe_decoder(config, "mixtral", "MixtralForCausalLM"),
        "intermediate_size": config.d_expert,
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.top_k,
        "sliding_window": config.sliding_window if config.sliding_layers else None,
    }


def read_mixtral(described: dict[str, Any]) -> ModelConfig:
    d = {"rope_theta": 1_000_000.0, **described}
    return ModelConfig(
        **read_decoder(d), **sliding(d, tuple(range(d["num_hidden_layers"]))), d_expert=d["intermediate_size"], n_experts=d["num_local_experts"],
        top_k=d["num_experts_per_tok"], router="softmax", router_bias=False,
    )  # fmt: skip


def mixtral_entries(config: ModelConfig, described: dict[str, Any]) -> Entries:
    return walk(config, attention_entries, _mixtral_experts)


def _mixtral_experts(config: ModelConfig, layer: int) -> Entries:
    theirs = f"model.layers.{layer}.block_sparse_moe."
    yield from router_entries(config, layer, f"{theirs}gate.weight", None)
    yield from expert_entries(config, layer, f"{theirs}experts.", MIXTRAL_NAMES)


# -- qwen3_moe


def describe_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    slides = bool(config.sliding_layers)
    return {
        **describe_decoder(config, "qwen3_moe", "Qwen3MoeForCausalLM"),
        "intermediate_size": config.d_dense or config.d_expert,
        "moe_intermediate_size": config.d_expert,
        "num_experts": config.n_experts,
        "num_experts_per_tok": config.top_k,
        "norm_topk_prob": config.norm_top_k,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(config.dense_layers)),
        "use_sliding_window": slides,
        "sliding_window": config.sliding_window if slides else None,
    }


def read_qwen3_moe(described: dict[str, Any]) -> ModelConfig:
    d = {"rms_norm_eps": 1e-6, "decoder_sparse_step": 1, "norm_topk_prob": False, **described}
    require(d, {"decoder_sparse_step": (1,)})
    dense = sorted(set(d.get("mlp_only_layers") or []))
    if dense != list(range(len(dense))):
        raise UnsupportedModel(f"mlp_only_layers = {dense} is not supported: dense layers must be the first ones.")
    slides = tuple(range(d["num_hidden_layers"])) if d.get("use_sliding_window") else ()
    return ModelConfig(
        **read_decoder(d), **both_biases(d), **sliding(d, slides), qk_norm="head", d_expert=d["moe_intermediate_size"], n_experts=_experts(d),
        top_k=d["num_experts_per_tok"], router="softmax", router_bias=False, norm_top_k=bool(d["norm_topk_prob"]), first_dense_layers=len(dense),
        d_dense=d["intermediate_size"] if dense else 0,
    )  # fmt: skip


# -- olmoe


def describe_olmoe(config: ModelConfig) -> dict[str, Any]:
    return {
        **describe_decoder(config, "olmoe", "OlmoeForCausalLM"),
        "intermediate_size": config.d_expert,
        "num_experts": config.n_experts,
        "num_experts_per_tok": config.top_k,
        "norm_topk_prob": config.norm_top_k,
        "clip_qkv": config.clip_qkv or None,
    }


def read_olmoe(described: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        **read_decoder(described), **both_biases(described), qk_norm="whole", clip_qkv=described.get("clip_qkv") or 0.0,
        d_expert=described["intermediate_size"], n_experts=_experts(described), top_k=described["num_experts_per_tok"], router="softmax",
        router_bias=False, norm_top_k=bool(described.get("norm_topk_prob", False)),
    )  # fmt: skip


def _experts(described: dict[str, Any]) -> int:
    """Their number has had two names."""
    return int(described.get("num_experts") or described["num_local_experts"])


def softmax_entries(config: ModelConfig, described: dict[str, Any]) -> Entries:
    """`qwen3_moe` and `olmoe`, which name their tensors alike."""
    return walk(config, attention_entries, _softmax_feed_forward)


def _softmax_feed_forward(config: ModelConfig, layer: int) -> Entries:
    theirs = f"model.layers.{layer}.mlp."
    if layer < config.dense_layers:
        yield from network_entries(f"blocks.{layer}.feed_forward.dense.", theirs, config.d_model, config.d_dense)
        return
    yield from router_entries(config, layer, f"{theirs}gate.weight", None)
    yield from expert_entries(config, layer, f"{theirs}experts.")
