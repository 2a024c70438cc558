"""Our decoder as architectures that `transformers`, vLLM and SGLang know, exactly, and back.

| decoder                  | stored as   | why exact |
|--------------------------|-------------|-----------|
| softmax router           | `gpt_oss`   | softmax over all, top-K, renormalised = softmax over the top-K logits, with bias; its peculiarities switch off: alpha 1, no clamp, bias −1 on `up` (it adds 1), sinks at −1e9, full attention |
| sigmoid router           | `glm4_moe`  | DeepSeek-V3's routing over plain grouped-query attention (`deepseek_v3` itself has latent attention) |
| dense                    | `llama`     | the same decoder |

Reading works on NumPy's arrays as on PyTorch's tensors, and needs no torch then: an engine starts in half the time without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.moe.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]

# Large enough never to clamp or to be attended to, small enough for FP32 to stay finite.
NO_LIMIT = 1e9


class UnsupportedModel(ValueError):
    """A folder holds a model that this decoder does not express. The message names what differs."""


@dataclass(frozen=True)
class Layout:
    """One Hugging Face architecture: a configuration and named tensors, to and from ours."""

    model_type: str
    describe: Callable[[ModelConfig], dict[str, Any]]
    read_config: Callable[[dict[str, Any]], ModelConfig]
    export_feed_forward: Callable[[ModelConfig, Tensors, int], Tensors]
    import_feed_forward: Callable[[ModelConfig, Tensors, int], Tensors]


def layout_of(config: ModelConfig) -> Layout:
    if not config.is_moe:
        return LAYOUTS["llama"]
    return LAYOUTS["gpt_oss" if config.router == "softmax" else "glm4_moe"]


def layout_named(model_type: str | None) -> Layout:
    if model_type not in LAYOUTS:
        raise UnsupportedModel(f"The architecture {model_type!r} is not supported; these are: {', '.join(LAYOUTS)}.")
    return LAYOUTS[model_type]


def export_tensors(config: ModelConfig, state: Tensors) -> Tensors:
    """Our state dictionary under the layout's names. Tied embeddings are stored once."""
    layout = layout_of(config)
    out = {"model.embed_tokens.weight": state["embedding.weight"], "model.norm.weight": state["norm.weight"]}
    if not config.tie_embeddings:
        out["lm_head.weight"] = state["head.weight"]
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        parts = state[ours + "attention.qkv.weight"].split([q, kv, kv])
        for name, part in zip("qkv", parts, strict=True):
            out[f"{theirs}self_attn.{name}_proj.weight"] = part
        out[theirs + "self_attn.o_proj.weight"] = state[ours + "attention.out.weight"]
        out[theirs + "input_layernorm.weight"] = state[ours + "attention_norm.weight"]
        out[theirs + "post_attention_layernorm.weight"] = state[ours + "feed_forward_norm.weight"]
        out |= layout.export_feed_forward(config, state, layer)
    return {name: tensor.contiguous() for name, tensor in out.items()}


def import_tensors(layout: Layout, config: ModelConfig, tensors: Tensors) -> Tensors:
    """The layout's tensors as our state dictionary. UnsupportedModel where a tensor is missing."""
    try:
        return _import_tensors(layout, config, tensors)
    except KeyError as missing:
        raise UnsupportedModel(f"The model has no tensor {missing}, which {layout.model_type} must have.") from missing


def _import_tensors(layout: Layout, config: ModelConfig, tensors: Tensors) -> Tensors:
    embedding = tensors["model.embed_tokens.weight"]
    head = embedding if config.tie_embeddings else tensors["lm_head.weight"]
    state = {"embedding.weight": embedding, "head.weight": head, "norm.weight": tensors["model.norm.weight"]}
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        state[ours + "attention.qkv.weight"] = _join([tensors[f"{theirs}self_attn.{n}_proj.weight"] for n in "qkv"], axis=0)
        state[ours + "attention.out.weight"] = tensors[theirs + "self_attn.o_proj.weight"]
        state[ours + "attention_norm.weight"] = tensors[theirs + "input_layernorm.weight"]
        state[ours + "feed_forward_norm.weight"] = tensors[theirs + "post_attention_layernorm.weight"]
        state |= layout.import_feed_forward(config, tensors, layer)
    return state


# -- what the layouts have in common


def _describe_decoder(config: ModelConfig, model_type: str, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,  # read by servers older than `rope_parameters`
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "torch_dtype": "float32",
    }


def _read_decoder(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _require(config, {"attention_bias": (False, None), "hidden_act": ("silu", None)})
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedModel(f"Rotary positions of type {rope['rope_type']!r} are not supported; 'default' is.")
    heads = config["num_attention_heads"]
    return {
        "vocab_size": config["vocab_size"],
        "d_model": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        "max_seq_len": config.get("max_position_embeddings", 2048),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _require(config: dict[str, Any], expected: dict[str, tuple[Any, ...]]) -> None:
    for name, allowed in expected.items():
        if config.get(name) not in allowed:
            raise UnsupportedModel(f"{name} = {config.get(name)!r} is not supported; {allowed[0]!r} is.")


def _export_network(gate_up: Tensor, down: Tensor, prefix: str) -> Tensors:
    """One SwiGLU network, (d_model, 2 · d_hidden) and (d_hidden, d_model), as three linear layers."""
    gate, up = gate_up.chunk(2, dim=-1)
    return {f"{prefix}gate_proj.weight": gate.T, f"{prefix}up_proj.weight": up.T, f"{prefix}down_proj.weight": down.T}


def _import_network(tensors: Tensors, prefix: str) -> tuple[Tensor, Tensor]:
    gate, up, down = (tensors[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return _join([gate.T, up.T], axis=1), _join([down.T], axis=1)


def _join(parts: Sequence[Tensor], axis: int) -> Tensor:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=axis)
    import torch

    return torch.cat(list(parts), dim=axis)


# -- gpt_oss


def _describe_gpt_oss(config: ModelConfig) -> dict[str, Any]:
    return {
        **_describe_decoder(config, "gpt_oss", "GptOssForCausalLM"),
        "intermediate_size": config.d_expert,
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.top_k,
        "experts_per_token": config.top_k,
        "swiglu_alpha": 1.0,
        "swiglu_limit": NO_LIMIT,
        "layer_types": ["full_attention"] * config.n_layers,
        "sliding_window": config.max_seq_len,  # no layer slides, yet transformers asks for a width
    }


def _read_gpt_oss(config: dict[str, Any]) -> ModelConfig:
    _require(config, {"swiglu_alpha": (1.0,), "swiglu_limit": (NO_LIMIT,)})
    if set(config.get("layer_types") or []) != {"full_attention"}:
        raise UnsupportedModel("Sliding-window layers are not supported; layer_types must all be 'full_attention'.")
    return ModelConfig(
        **_read_decoder(config), d_expert=config["intermediate_size"], n_experts=config["num_local_experts"],
        top_k=config.get("num_experts_per_tok") or config["experts_per_token"], router="softmax",
    )  # fmt: skip


def _export_gpt_oss(config: ModelConfig, state: Tensors, layer: int) -> Tensors:
    import torch

    ours, theirs = f"blocks.{layer}.feed_forward.", f"model.layers.{layer}."
    gate_up, down = state[ours + "experts.gate_up"], state[ours + "experts.down"]
    gate, up = gate_up.chunk(2, dim=-1)
    interleaved = torch.stack([gate, up], dim=-1).flatten(-2)
    bias = torch.zeros(config.n_experts, 2 * config.d_expert, dtype=gate_up.dtype)
    bias[:, 1::2] = -1.0
    return {
        theirs + "self_attn.sinks": torch.full((config.n_heads,), -NO_LIMIT, dtype=gate_up.dtype),
        theirs + "mlp.router.weight": state[ours + "router.weight"],
        theirs + "mlp.router.bias": state[ours + "router.bias"],
        theirs + "mlp.experts.gate_up_proj": interleaved,
        theirs + "mlp.experts.gate_up_proj_bias": bias,
        theirs + "mlp.experts.down_proj": down,
        theirs + "mlp.experts.down_proj_bias": torch.zeros(config.n_experts, config.d_model, dtype=gate_up.dtype),
    }


def _import_gpt_oss(config: ModelConfig, tensors: Tensors, layer: int) -> Tensors:
    ours, theirs = f"blocks.{layer}.feed_forward.", f"model.layers.{layer}."
    bias = tensors[theirs + "mlp.experts.gate_up_proj_bias"]
    neutral = (
        bool((bias[:, 0::2] == 0).all() and (bias[:, 1::2] == -1).all())
        and not tensors[theirs + "mlp.experts.down_proj_bias"].any()
        and bool((tensors[theirs + "self_attn.sinks"] <= -1e4).all())
    )
    if not neutral:
        raise UnsupportedModel("Biased experts and attention sinks are not supported: the model is a gpt_oss of another kind.")
    interleaved = tensors[theirs + "mlp.experts.gate_up_proj"]
    return {
        ours + "router.weight": tensors[theirs + "mlp.router.weight"],
        ours + "router.bias": tensors[theirs + "mlp.router.bias"],
        ours + "experts.gate_up": _join([interleaved[..., 0::2], interleaved[..., 1::2]], axis=-1),
        ours + "experts.down": tensors[theirs + "mlp.experts.down_proj"],
    }


# -- glm4_moe


def _describe_glm4_moe(config: ModelConfig) -> dict[str, Any]:
    return {
        **_describe_decoder(config, "glm4_moe", "Glm4MoeForCausalLM"),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0},
        "partial_rotary_factor": 1.0,
        "intermediate_size": config.d_dense or config.d_expert,
        "moe_intermediate_size": config.d_expert,
        "n_routed_experts": config.n_experts,
        "num_experts_per_tok": config.top_k,
        "n_shared_experts": config.n_shared_experts,
        "first_k_dense_replace": config.first_dense_layers,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_qk_norm": False,
        "num_nextn_predict_layers": 0,
    }


def _read_glm4_moe(config: dict[str, Any]) -> ModelConfig:
    _require(
        config, {"n_group": (1, None), "topk_group": (1, None), "norm_topk_prob": (True,), "routed_scaling_factor": (1.0, None), "use_qk_norm": (False, None)}
    )  # fmt: skip
    rope = config.get("rope_parameters") or {}
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5)) != 1.0:
        raise UnsupportedModel("Partly rotated heads are not supported; partial_rotary_factor must be 1.")
    first_dense = config.get("first_k_dense_replace", 0)
    return ModelConfig(
        **_read_decoder(config), d_expert=config["moe_intermediate_size"], n_experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"], router="sigmoid", n_shared_experts=config.get("n_shared_experts") or 0,
        first_dense_layers=first_dense, d_dense=config["intermediate_size"] if first_dense else 0,
    )  # fmt: skip


def _export_glm4_moe(config: ModelConfig, state: Tensors, layer: int) -> Tensors:
    import torch

    ours, theirs = f"blocks.{layer}.feed_forward.", f"model.layers.{layer}.mlp."
    if layer < config.dense_layers:
        return _export_network(state[ours + "dense.gate_up"], state[ours + "dense.down"], theirs)
    out = {
        theirs + "gate.weight": state[ours + "router.weight"],
        theirs + "gate.e_score_correction_bias": state[ours + "router.bias"],
    }
    for expert in range(config.n_experts):
        prefix = f"{theirs}experts.{expert}."
        out |= _export_network(state[ours + "experts.gate_up"][expert], state[ours + "experts.down"][expert], prefix)
    if config.n_shared_experts:
        shared = state[ours + "shared.gate_up"], state[ours + "shared.down"]
    else:  # the architecture always has the network; of width 0 it adds nothing
        shared = torch.zeros(config.d_model, 0), torch.zeros(0, config.d_model)
    return out | _export_network(*shared, theirs + "shared_experts.")


def _import_glm4_moe(config: ModelConfig, tensors: Tensors, layer: int) -> Tensors:
    ours, theirs = f"blocks.{layer}.feed_forward.", f"model.layers.{layer}.mlp."
    if layer < config.dense_layers:
        gate_up, down = _import_network(tensors, theirs)
        return {ours + "dense.gate_up": gate_up, ours + "dense.down": down}
    networks = [_import_network(tensors, f"{theirs}experts.{expert}.") for expert in range(config.n_experts)]
    state = {
        ours + "router.weight": tensors[theirs + "gate.weight"],
        ours + "router.bias": tensors[theirs + "gate.e_score_correction_bias"],
        ours + "experts.gate_up": _join([gate_up[None] for gate_up, _ in networks], axis=0),
        ours + "experts.down": _join([down[None] for _, down in networks], axis=0),
    }
    if config.n_shared_experts:
        state[ours + "shared.gate_up"], state[ours + "shared.down"] = _import_network(tensors, theirs + "shared_experts.")
    return state


# -- llama


def _describe_llama(config: ModelConfig) -> dict[str, Any]:
    return {**_describe_decoder(config, "llama", "LlamaForCausalLM"), "intermediate_size": config.d_dense, "mlp_bias": False}


def _read_llama(config: dict[str, Any]) -> ModelConfig:
    _require(config, {"mlp_bias": (False, None)})
    return ModelConfig(**_read_decoder(config), d_expert=0, n_experts=0, top_k=0, d_dense=config["intermediate_size"])


def _export_llama(config: ModelConfig, state: Tensors, layer: int) -> Tensors:
    ours = f"blocks.{layer}.feed_forward.dense."
    return _export_network(state[ours + "gate_up"], state[ours + "down"], f"model.layers.{layer}.mlp.")


def _import_llama(config: ModelConfig, tensors: Tensors, layer: int) -> Tensors:
    gate_up, down = _import_network(tensors, f"model.layers.{layer}.mlp.")
    return {f"blocks.{layer}.feed_forward.dense.gate_up": gate_up, f"blocks.{layer}.feed_forward.dense.down": down}


LAYOUTS: dict[str, Layout] = {
    layout.model_type: layout
    for layout in (
        Layout("gpt_oss", _describe_gpt_oss, _read_gpt_oss, _export_gpt_oss, _import_gpt_oss),
        Layout("glm4_moe", _describe_glm4_moe, _read_glm4_moe, _export_glm4_moe, _import_glm4_moe),
        Layout("llama", _describe_llama, _read_llama, _export_llama, _import_llama),
    )
}
