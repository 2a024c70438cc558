"""Sigmoid routers: `glm4_moe` (DeepSeek-V3's routing over grouped-query attention) and `deepseek_v3` (with latent attention)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from workers.moe.config import ModelConfig
from workers.moe.layouts.decoder import (
    attention_entries,
    describe_decoder,
    expert_entries,
    network_entries,
    read_decoder,
    require,
    rope_of,
    router_entries,
    walk,
)  # fmt: skip
from workers.moe.layouts.parts import Entries, Entry, Fixed, Part, whole


def _describe_experts(config: ModelConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.d_dense or config.d_expert,
        "moe_intermediate_size": config.d_expert or config.d_dense,
        "n_routed_experts": config.n_experts or 1,
        "num_experts_per_tok": config.top_k or 1,
        "n_shared_experts": config.n_shared_experts,
        "first_k_dense_replace": config.dense_layers,
        "n_group": config.router_groups,
        "topk_group": config.router_top_groups,
        "norm_topk_prob": config.norm_top_k,
        "routed_scaling_factor": config.routed_scaling,
        "num_nextn_predict_layers": 0,
    }


def _read_experts(d: dict[str, Any]) -> dict[str, Any]:
    """What is dense throughout has no experts, whatever is said of them."""
    dense = d["first_k_dense_replace"]
    if dense >= d["num_hidden_layers"]:
        return {"d_expert": 0, "n_experts": 0, "top_k": 0, "d_dense": d["intermediate_size"]}
    return {
        "d_expert": d["moe_intermediate_size"], "n_experts": d["n_routed_experts"], "top_k": d["num_experts_per_tok"], "router": "sigmoid",
        "n_shared_experts": d.get("n_shared_experts") or 0, "first_dense_layers": dense, "d_dense": d["intermediate_size"] if dense else 0,
        "norm_top_k": bool(d["norm_topk_prob"]), "routed_scaling": float(d["routed_scaling_factor"] or 1.0),
        "router_groups": d["n_group"] or 1, "router_top_groups": d["topk_group"] or 1,
    }  # fmt: skip


def _feed_forward_entries(config: ModelConfig, layer: int) -> Entries:
    ours, theirs = f"blocks.{layer}.feed_forward.", f"model.layers.{layer}.mlp."
    if layer < config.dense_layers:
        yield from network_entries(f"{ours}dense.", theirs, config.d_model, config.d_dense)
        return
    yield from router_entries(config, layer, f"{theirs}gate.weight", f"{theirs}gate.e_score_correction_bias")
    yield from expert_entries(config, layer, f"{theirs}experts.")
    if config.n_shared_experts:
        yield from network_entries(f"{ours}shared.", f"{theirs}shared_experts.", config.d_model, config.n_shared_experts * config.d_expert)
        return
    for name, shape in {"gate": (0, config.d_model), "up": (0, config.d_model), "down": (config.d_model, 0)}.items():
        # The architecture always has the network; of width 0 it adds nothing.
        yield Fixed(f"{theirs}shared_experts.{name}_proj.weight", np.zeros(shape, np.float32))


# -- glm4_moe


def describe_glm4_moe(config: ModelConfig) -> dict[str, Any]:
    described = describe_decoder(config, "glm4_moe", "Glm4MoeForCausalLM")
    for place in ("rope_parameters", "rope_scaling"):
        if place in described:
            described[place]["partial_rotary_factor"] = config.rotary_share
    return {
        **described, "partial_rotary_factor": config.rotary_share, **_describe_experts(config), "use_qk_norm": config.qk_norm == "head",
    }  # fmt: skip


def read_glm4_moe(described: dict[str, Any]) -> ModelConfig:
    d = {
        "partial_rotary_factor": 0.5, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 1.0, **described,
    }  # fmt: skip
    share = rope_of(d).get("partial_rotary_factor", d["partial_rotary_factor"])
    return ModelConfig(
        **read_decoder(d), **_read_experts(d), attention_bias=bool(d.get("attention_bias")), qk_norm="head" if d.get("use_qk_norm") else "none",
        rotary_share=float(share),
    )  # fmt: skip


def glm4_moe_entries(config: ModelConfig, described: dict[str, Any]) -> Entries:
    return walk(config, attention_entries, _feed_forward_entries)


# -- deepseek_v3


def describe_deepseek_v3(config: ModelConfig) -> dict[str, Any]:
    return {
        **describe_decoder(config, "deepseek_v3", "DeepseekV3ForCausalLM"),
        **_describe_experts(config),
        "head_dim": config.rope_head_dim,
        "kv_lora_rank": config.kv_rank,
        "q_lora_rank": config.q_rank or None,
        "qk_rope_head_dim": config.rope_head_dim,
        "qk_nope_head_dim": config.head_dim - config.rope_head_dim,
        "v_head_dim": config.value_head_dim,
        "rope_interleave": True,
    }


def read_deepseek_v3(described: dict[str, Any]) -> ModelConfig:
    d = {
        "rms_norm_eps": 1e-6, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, **described,
    }  # fmt: skip
    require(d, {"attention_bias": (False, None)})
    decoder = {**read_decoder(d), "head_dim": d["qk_nope_head_dim"] + d["qk_rope_head_dim"], "n_kv_heads": d["num_attention_heads"]}
    return ModelConfig(
        **decoder, **_read_experts(d), kv_rank=d["kv_lora_rank"], q_rank=d["q_lora_rank"] or 0, rope_head_dim=d["qk_rope_head_dim"],
        value_head_dim=d["v_head_dim"],
    )  # fmt: skip


def deepseek_v3_entries(config: ModelConfig, described: dict[str, Any]) -> Entries:
    return walk(config, partial(_latent_entries, interleaved=described.get("rope_interleave", True) is not False), _feed_forward_entries)


def _latent_entries(config: ModelConfig, layer: int, *, interleaved: bool) -> Entries:
    """They keep the two numbers that rotate together side by side; we keep the first of all pairs, then the second."""
    ours, theirs = f"blocks.{layer}.attention.", f"model.layers.{layer}.self_attn."
    d, heads, rank, rotated = config.d_model, config.n_heads, config.kv_rank, config.rope_head_dim
    passed, half = config.head_dim - rotated, rotated // 2
    asked = config.q_rank or d

    def ends(name: str, view: tuple[int, int, int], kept: int) -> tuple[Part, ...]:
        """The rows of each head of `view`: `kept` as they are, then the rotated ones."""
        if not interleaved:
            return (Part(name),)
        every, width = slice(None), kept + rotated
        first, second = slice(kept, kept + half), slice(kept + half, width)
        return (
            Part(name, at=(every, slice(0, kept)), of=(every, slice(0, kept)), view=view),
            Part(name, at=(every, first), of=(every, slice(kept, width, 2)), view=view),
            Part(name, at=(every, second), of=(every, slice(kept + 1, width, 2)), view=view),
        )

    if config.q_rank:
        yield whole(f"{ours}q_down.weight", (asked, d), f"{theirs}q_a_proj.weight")
        yield whole(f"{ours}q_norm.weight", (asked,), f"{theirs}q_a_layernorm.weight")
    q_name = f"{theirs}q_b_proj.weight" if config.q_rank else f"{theirs}q_proj.weight"
    yield Entry(f"{ours}q_up.weight", (heads * config.head_dim, asked), ends(q_name, (heads, config.head_dim, asked), passed))
    yield Entry(f"{ours}kv_down.weight", (rank + rotated, d), ends(f"{theirs}kv_a_proj_with_mqa.weight", (1, rank + rotated, d), rank))
    yield whole(f"{ours}kv_norm.weight", (rank,), f"{theirs}kv_a_layernorm.weight")
    yield whole(f"{ours}kv_up.weight", (heads * (passed + config.value_head_dim), rank), f"{theirs}kv_b_proj.weight")
    yield whole(f"{ours}out.weight", (d, heads * config.value_head_dim), f"{theirs}o_proj.weight")
