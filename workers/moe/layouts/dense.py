"""Without experts: `llama`, and `qwen3` where queries and keys are normalised."""

from __future__ import annotations

from typing import Any

from workers.moe.config import ModelConfig
from workers.moe.layouts.decoder import (
    attention_entries,
    both_biases,
    describe_decoder,
    network_entries,
    read_decoder,
    require,
    walk,
)  # fmt: skip
from workers.moe.layouts.parts import Entries


def describe_llama(config: ModelConfig) -> dict[str, Any]:
    return {**describe_decoder(config, "llama", "LlamaForCausalLM"), "intermediate_size": config.d_dense, "mlp_bias": False}


def read_llama(described: dict[str, Any]) -> ModelConfig:
    require(described, {"mlp_bias": (False, None)})
    return _read_dense(described)


def describe_qwen3(config: ModelConfig) -> dict[str, Any]:
    return {**describe_decoder(config, "qwen3", "Qwen3ForCausalLM"), "intermediate_size": config.d_dense, "use_sliding_window": False}


def read_qwen3(described: dict[str, Any]) -> ModelConfig:
    require(described, {"use_sliding_window": (False, None)})
    return _read_dense({"rms_norm_eps": 1e-6, "head_dim": 128, **described}, qk_norm="head")


def _read_dense(described: dict[str, Any], **changes: Any) -> ModelConfig:
    return ModelConfig(
        **read_decoder(described), **both_biases(described), **changes, d_expert=0, n_experts=0, top_k=0, d_dense=described["intermediate_size"]
    )  # fmt: skip


def dense_entries(config: ModelConfig, described: dict[str, Any]) -> Entries:
    return walk(config, attention_entries, _network)


def _network(config: ModelConfig, layer: int) -> Entries:
    return network_entries(f"blocks.{layer}.feed_forward.dense.", f"model.layers.{layer}.mlp.", config.d_model, config.d_dense)
