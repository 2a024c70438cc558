"""What all layouts have in common: the keys of config.json, and the tensors of attention, norms and networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.moe.config import ModelConfig
from workers.moe.layouts.parts import Entries, Entry, Part, UnsupportedModel, whole
from workers.moe.scaling import RopeScaling

# Fields of RopeScaling under the names that config.json has for them.
_SCALING = {
    "factor": "factor", "original_length": "original_max_position_embeddings", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
    "truncate": "truncate", "attention_factor": "attention_factor", "mscale": "mscale", "mscale_all_dim": "mscale_all_dim",
    "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
}  # fmt: skip
_SCALING_OF = {
    "linear": ("factor",), "llama3": ("factor", "original_length", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_length", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"),
}  # fmt: skip


def describe_decoder(config: ModelConfig, model_type: str, architecture: str) -> dict[str, Any]:
    described = {
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
        "attention_bias": config.attention_bias,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,  # read by servers older than `rope_parameters`
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "torch_dtype": "float32",
    }
    if (scaling := config.rope_scaling) is not None:
        values = {_SCALING[name]: getattr(scaling, name) for name in _SCALING_OF[scaling.kind]}
        rope = {"rope_type": scaling.kind, **{name: value for name, value in values.items() if value is not None}}
        described["rope_scaling"] = rope
        described["rope_parameters"] = {**rope, "rope_theta": config.rope_theta}
    return described


def read_decoder(described: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ModelConfig that each layout reads in the same way."""
    require(described, {"hidden_act": ("silu", None)})
    heads = described["num_attention_heads"]
    rope = rope_of(described)
    return {
        "vocab_size": described["vocab_size"],
        "d_model": described["hidden_size"],
        "n_layers": described["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": described.get("num_key_value_heads") or heads,
        "head_dim": described.get("head_dim") or described["hidden_size"] // heads,
        "norm_eps": described.get("rms_norm_eps", 1e-5),
        "rope_theta": float(rope.get("rope_theta") or described.get("rope_theta") or 10_000.0),
        "rope_scaling": _read_scaling(rope, described),
        "max_seq_len": described.get("max_position_embeddings", 2048),
        "tie_embeddings": bool(described.get("tie_word_embeddings", False)),
    }


def rope_of(described: dict[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions, in the new place and in the old one."""
    return {**(described.get("rope_parameters") or {}), **(described.get("rope_scaling") or {})}


def _read_scaling(rope: dict[str, Any], described: dict[str, Any]) -> RopeScaling | None:
    kind: Any = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in _SCALING_OF:
        raise UnsupportedModel(f"Rotary positions of type {kind!r} are not supported; {', '.join(('default', *_SCALING_OF))} are.")
    values = {name: rope[_SCALING[name]] for name in _SCALING_OF[kind] if rope.get(_SCALING[name]) is not None}
    longest = described.get("max_position_embeddings", 2048)
    if kind != "linear":
        values.setdefault("original_length", longest)
    if "factor" not in values and kind == "yarn":
        values["factor"] = longest / values["original_length"]
    return RopeScaling(kind, **values)


def both_biases(described: dict[str, Any]) -> dict[str, Any]:
    """Of attention, where one switch stands for the queries', keys' and values' and for the output's."""
    return dict.fromkeys(("attention_bias", "attention_out_bias"), bool(described.get("attention_bias")))


def sliding(described: dict[str, Any], layers: tuple[int, ...]) -> dict[str, Any]:
    window = described.get("sliding_window")
    return {"sliding_window": window, "sliding_layers": layers} if window and layers else {}


def require(described: dict[str, Any], expected: dict[str, tuple[Any, ...]]) -> None:
    for name, allowed in expected.items():
        if described.get(name) not in allowed:
            raise UnsupportedModel(f"{name} = {described.get(name)!r} is not supported; {allowed[0]!r} is.")


# -- tensors

LayerEntries = Callable[[ModelConfig, int], Entries]


def walk(config: ModelConfig, attention: LayerEntries, feed_forward: LayerEntries) -> Entries:
    """All tensors of a model, from the embedding up. `attention`, `feed_forward`: those of one layer, whose norms come before them."""
    yield from decoder_entries(config)
    for layer in range(config.n_layers):
        yield from norm_entries(config, layer)
        yield from attention(config, layer)
        yield from feed_forward(config, layer)


def decoder_entries(config: ModelConfig) -> Entries:
    """What lies outside the layers. Tied embeddings are stored once."""
    shape = config.vocab_size, config.d_model
    yield whole("embedding.weight", shape, "model.embed_tokens.weight")
    yield whole("norm.weight", (config.d_model,), "model.norm.weight")
    if not config.tie_embeddings:
        yield whole("head.weight", shape, "lm_head.weight")


def norm_entries(config: ModelConfig, layer: int) -> Entries:
    ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
    yield whole(f"{ours}attention_norm.weight", (config.d_model,), f"{theirs}input_layernorm.weight")
    yield whole(f"{ours}feed_forward_norm.weight", (config.d_model,), f"{theirs}post_attention_layernorm.weight")


def attention_entries(config: ModelConfig, layer: int) -> Entries:
    """Grouped-query attention: our one matrix is their three, one above the other."""
    ours, theirs = f"blocks.{layer}.attention.", f"model.layers.{layer}.self_attn."
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    rows = {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}

    def stacked(kind: str) -> tuple[Part, ...]:
        return tuple(Part(f"{theirs}{name}_proj.{kind}", at=(at,)) for name, at in rows.items())

    yield Entry(f"{ours}qkv.weight", (q + 2 * kv, config.d_model), stacked("weight"))
    yield whole(f"{ours}out.weight", (config.d_model, q), f"{theirs}o_proj.weight")
    if config.attention_bias:
        yield Entry(f"{ours}qkv.bias", (q + 2 * kv,), stacked("bias"))
    if config.attention_out_bias:
        yield whole(f"{ours}out.bias", (config.d_model,), f"{theirs}o_proj.bias")
    if config.qk_norm != "none":
        q_width, k_width = (config.head_dim, config.head_dim) if config.qk_norm == "head" else (q, kv)
        yield whole(f"{ours}q_norm.weight", (q_width,), f"{theirs}q_norm.weight")
        yield whole(f"{ours}k_norm.weight", (k_width,), f"{theirs}k_norm.weight")


def network_entries(
    ours: str, theirs: str, d_model: int, d_hidden: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Entries:
    """One SwiGLU network as three linear layers. `ours`, `theirs`: beginnings of names; `names`: of gate, up and down."""
    gate, up, down = (f"{theirs}{name}.weight" for name in names)
    yield Entry(f"{ours}gate_up", (d_model, 2 * d_hidden), (*_halves(gate, up, d_hidden),))
    yield Entry(f"{ours}down", (d_hidden, d_model), (Part(down, turned=True),))


def expert_entries(config: ModelConfig, layer: int, theirs: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Entries:
    """Our stacked experts as one network each. `theirs`: the beginning of names, to be followed by the expert's number."""
    ours, d, hidden, experts = f"blocks.{layer}.feed_forward.experts.", config.d_model, config.d_expert, range(config.n_experts)
    gate_up = [part for e in experts for part in _halves(f"{theirs}{e}.{names[0]}.weight", f"{theirs}{e}.{names[1]}.weight", hidden, e)]
    yield Entry(f"{ours}gate_up", (config.n_experts, d, 2 * hidden), tuple(gate_up))
    down = [Part(f"{theirs}{e}.{names[2]}.weight", at=(e,), turned=True) for e in experts]
    yield Entry(f"{ours}down", (config.n_experts, hidden, d), tuple(down))


def _halves(gate: str, up: str, hidden: int, *first: int) -> tuple[Part, Part]:
    return Part(gate, at=(*first, slice(None), slice(0, hidden)), turned=True), Part(
        up, at=(*first, slice(None), slice(hidden, 2 * hidden)), turned=True
    )


def router_entries(config: ModelConfig, layer: int, weight: str, bias: str | None) -> Entries:
    """`bias`: its name, or None where the architecture has none: then it is zero."""
    ours = f"blocks.{layer}.feed_forward.router."
    yield whole(f"{ours}weight", (config.n_experts, config.d_model), weight)
    yield Entry(f"{ours}bias", (config.n_experts,), (Part(bias),) if bias else ())
