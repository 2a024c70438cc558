"""Which open architectures express which of the decoder's features. Data only: a configuration checks itself against it.

A model is stored as the first family that has all its features, so that whatever can be trained here can be loaded elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.moe.config import ModelConfig

ATTENTION_FEATURES = (
    "attention_bias", "attention_out_bias", "qk_norm", "clip_qkv", "rotary_share", "sliding_window", "sliding_layers", "attention_sinks",
    "kv_rank", "q_rank", "rope_head_dim", "value_head_dim",
)  # fmt: skip
ROUTER_FEATURES = (
    "router",
    "router_bias",
    "n_shared_experts",
    "first_dense_layers",
    "norm_top_k",
    "routed_scaling",
    "router_groups",
    "router_top_groups",
)
EXPERT_FEATURES = ("expert_bias", "swiglu_alpha", "swiglu_limit", "swiglu_offset")

# What every part of this program expresses, compiled runners too.
_EVERYWHERE = ("router", "router_bias", "n_shared_experts", "first_dense_layers")

# Features of other people's models: a configuration that has none of them need not speak of them.
OPTIONAL = tuple(
    name for name in (*ATTENTION_FEATURES, "rope_scaling", *ROUTER_FEATURES, *EXPERT_FEATURES) if name not in ("router", "n_shared_experts", "first_dense_layers")
)  # fmt: skip

Allowed = Callable[[Any], bool]


def _any(_: Any) -> bool:
    return True


def _is(*values: Any) -> Allowed:
    return lambda value: value in values


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture. A feature that `has` does not name must be at its default. `agree`: what must hold between features."""

    model_type: str
    moe: bool | None  # None: with and without experts
    has: Mapping[str, Allowed]
    agree: Callable[[ModelConfig], str | None] = lambda config: None


def _biases_agree(config: ModelConfig) -> str | None:
    return None if config.attention_bias == config.attention_out_bias else "attention_bias and attention_out_bias must be equal"


def _all_slide_or_none(config: ModelConfig) -> str | None:
    return None if config.sliding_layers in ((), tuple(range(config.n_layers))) else "sliding_layers must be all layers or none"


def _mixtral_agrees(config: ModelConfig) -> str | None:
    return _all_slide_or_none(config)


def _qwen3_moe_agrees(config: ModelConfig) -> str | None:
    return _biases_agree(config) or _all_slide_or_none(config)


def _olmoe_agrees(config: ModelConfig) -> str | None:
    return _biases_agree(config) or (None if config.n_heads * config.head_dim == config.d_model else "n_heads · head_dim must be d_model")


def _deepseek_agrees(config: ModelConfig) -> str | None:
    return None if config.kv_rank and config.n_kv_heads == config.n_heads else "latent attention (kv_rank) with n_kv_heads = n_heads is needed"


_BIASES = {"attention_bias": _any, "attention_out_bias": _any}
_SLIDING = {"sliding_window": _any, "sliding_layers": _any}
_SOFTMAX = {"router": _is("softmax"), "router_bias": _is(False)}
_SIGMOID = {
    "router": _is("sigmoid"), "router_bias": _any, "n_shared_experts": _any, "first_dense_layers": _any, "norm_top_k": _any, "routed_scaling": _any,
    "router_groups": _any, "router_top_groups": _any,
}  # fmt: skip
_LATENT = {"kv_rank": _any, "q_rank": _any, "rope_head_dim": _any, "value_head_dim": _any}

# The order counts: the first that fits is taken.
FAMILIES = (
    Family("llama", False, _BIASES, _biases_agree),
    Family("qwen3", False, _BIASES | {"qk_norm": _is("head")}, _biases_agree),
    Family("gpt_oss", True, _BIASES | _SLIDING, _biases_agree),
    Family(
        "gpt_oss", True,
        _BIASES | _SLIDING | {"attention_sinks": _is(True), "expert_bias": _is(True), "swiglu_offset": _is(1.0), "swiglu_alpha": _any, "swiglu_limit": lambda v: v > 0},
        _biases_agree,
    ),
    Family("mixtral", True, _SOFTMAX | _SLIDING, _mixtral_agrees),
    Family(
        "qwen3_moe", True, _SOFTMAX | _BIASES | _SLIDING | {"qk_norm": _is("head"), "norm_top_k": _any, "first_dense_layers": _any}, _qwen3_moe_agrees
    ),
    Family("olmoe", True, _SOFTMAX | _BIASES | {"qk_norm": _is("whole"), "norm_top_k": _any, "clip_qkv": _any}, _olmoe_agrees),
    Family("glm4_moe", True, _SIGMOID | {"attention_bias": _any, "qk_norm": _is("none", "head"), "rotary_share": _any}),
    Family("deepseek_v3", None, _SIGMOID | _LATENT, _deepseek_agrees),
)  # fmt: skip


def family_of(config: ModelConfig) -> str:
    """The `model_type` as which a model is stored. ValueError that names what the nearest family has not."""
    problems = []
    for family in FAMILIES:
        if family.moe is not None and family.moe != config.is_moe:
            continue
        if not (found := _problems(config, family)):
            return family.model_type
        problems.append((len(found), family.model_type, found))
    _, nearest, found = min(problems, key=lambda p: p[0])
    raise ValueError(f"no architecture stores this combination; the nearest, {nearest}, differs: {'; '.join(found)}")


def _problems(config: ModelConfig, family: Family) -> list[str]:
    default = _defaults(config)
    found = []
    for name in (*ATTENTION_FEATURES, *(ROUTER_FEATURES + EXPERT_FEATURES if config.is_moe else ())):
        value = getattr(config, name)
        if not family.has.get(name, _is(default[name]))(value):
            found.append(f"{name} = {value!r}")
    if (disagreement := family.agree(config)) is not None:
        found.append(disagreement)
    return found


def special_features(config: ModelConfig) -> tuple[str, ...]:
    """The fields by which `config` goes beyond what compiled code, INT8 and ONNX express."""
    default = _defaults(config)
    names = (*ATTENTION_FEATURES, "rope_scaling", *(ROUTER_FEATURES + EXPERT_FEATURES if config.is_moe else ()))
    return tuple(name for name in names if name not in _EVERYWHERE and getattr(config, name) != default[name])


def _defaults(config: ModelConfig) -> dict[str, Any]:
    return {f.name: f.default for f in fields(config)}
