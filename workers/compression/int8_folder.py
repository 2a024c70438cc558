"""The folder of an INT8 model, read with numpy alone: nothing is decoded to floating point, nothing is packed for a kernel yet."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from workers.moe.config import ModelConfig

Array = NDArray
Pair = tuple[Array, Array]  # int8 weights with outputs first, and the scale of each output


class DamagedWeights(ValueError):
    """The folder's weights are missing, damaged, or not those that its config.json describes."""


@dataclass(frozen=True)
class FeedForward:
    """One layer's networks. `router` is None where the layer is dense."""

    networks: list[tuple[Pair, Pair]]  # gate_up and down of each expert, or of the one network
    router: tuple[Array, Array] | None = None  # weight and bias
    shared: tuple[Pair, Pair] | None = None


@dataclass(frozen=True)
class Layer:
    attention_norm: Array
    qkv: Pair
    out: Pair
    feed_forward_norm: Array
    feed_forward: FeedForward


@dataclass(frozen=True)
class StoredModel:
    config: ModelConfig
    embedding: Pair
    head: Pair  # the embedding itself where they are tied
    norm: Array
    layers: list[Layer]


def read_folder(folder: Path) -> StoredModel:
    """DamagedWeights."""
    try:
        described = json.loads((folder / "config.json").read_text())
        config = ModelConfig.from_dict(described["storage"]["model"])
        model = _read(config, described["model_type"], load_file(folder / "model.safetensors"))
        _require_shapes(model)
        return model
    except FileNotFoundError as error:
        raise DamagedWeights(f"{folder.name} has no {Path(error.filename or 'model.safetensors').name}.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedWeights(f"The weights of {folder.name} are damaged: {error}.") from error


def _read(config: ModelConfig, model_type: str, tensors: dict[str, Array]) -> StoredModel:
    feed_forward = {"gpt_oss": _gpt_oss, "glm4_moe": _glm4_moe, "mixtral": _mixtral, "llama": _llama}[model_type]
    embedding = _pair(tensors, "model.embed_tokens.weight")
    layers = [
        Layer(
            tensors[f"{prefix}input_layernorm.weight"],
            _above([_pair(tensors, f"{prefix}self_attn.{name}_proj.weight") for name in "qkv"]),
            _pair(tensors, f"{prefix}self_attn.o_proj.weight"),
            tensors[f"{prefix}post_attention_layernorm.weight"],
            feed_forward(config, tensors, f"{prefix}mlp."),
        )
        for prefix in (f"model.layers.{number}." for number in range(config.n_layers))
    ]
    head = embedding if config.tie_embeddings else _pair(tensors, "lm_head.weight")
    return StoredModel(config, embedding, head, tensors["model.norm.weight"], layers)


def _require_shapes(model: StoredModel) -> None:
    """Compiled code checks no bounds: what does not fit the configuration must not reach it. ValueError."""
    c = model.config
    d, attended = c.d_model, c.n_heads * c.head_dim
    _require(model.embedding, c.vocab_size, d)
    _require(model.head, c.vocab_size, d)
    for number, layer in enumerate(model.layers):
        _require(layer.qkv, attended + 2 * c.n_kv_heads * c.head_dim, d)
        _require(layer.out, d, attended)
        networks, routed = layer.feed_forward.networks, number >= c.dense_layers
        if (layer.feed_forward.router is not None) != routed or len(networks) != (c.n_experts if routed else 1):
            raise ValueError(f"layer {number} has {len(networks)} networks")
        for gate_up, down in networks:
            hidden = c.d_expert if routed else c.d_dense
            _require(gate_up, 2 * hidden, d)
            _require(down, d, hidden)
        if layer.feed_forward.router is not None and layer.feed_forward.router[0].shape != (c.n_experts, d):
            raise ValueError(f"the router of layer {number} has the shape {layer.feed_forward.router[0].shape}")
        if layer.feed_forward.shared is not None:
            _require(layer.feed_forward.shared[0], 2 * c.n_shared_experts * c.d_expert, d)
            _require(layer.feed_forward.shared[1], d, c.n_shared_experts * c.d_expert)
    if any(norm.shape != (d,) for layer in model.layers for norm in (layer.attention_norm, layer.feed_forward_norm, model.norm)):
        raise ValueError("a norm has another width than the model")


def _require(pair: Pair, outputs: int, inputs: int) -> None:
    weight, scale = pair
    if weight.dtype != np.int8 or weight.shape != (outputs, inputs) or scale.shape != (outputs,):
        raise ValueError(f"a matrix is {weight.dtype} {weight.shape}, not int8 {(outputs, inputs)}")


# -- the architectures as which the plain decoder is stored (workers.moe.layouts)


def _gpt_oss(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> FeedForward:
    stacked = f"{prefix}experts.gate_up_proj" in tensors
    networks = _stacked(config, tensors, prefix) if stacked else [_network_pairs(tensors, f"{prefix}experts.{e}.") for e in range(config.n_experts)]
    return FeedForward(networks, (tensors[f"{prefix}router.weight"], tensors[f"{prefix}router.bias"]))


def _stacked(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> list[tuple[Pair, Pair]]:
    """Experts as earlier versions stored them, in one tensor."""
    gate_up, gate_up_scale = tensors[f"{prefix}experts.gate_up_proj"], tensors[f"{prefix}experts.gate_up_proj_scale"]  # E, in, out; E, 1, out
    down, down_scale = tensors[f"{prefix}experts.down_proj"], tensors[f"{prefix}experts.down_proj_scale"]
    apart = np.concatenate([np.arange(0, gate_up.shape[2], 2), np.arange(1, gate_up.shape[2], 2)])  # gate and up are interleaved
    return [((gate_up[e].T[apart], gate_up_scale[e, 0][apart]), (down[e].T, down_scale[e, 0])) for e in range(config.n_experts)]


def _glm4_moe(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> FeedForward:
    if f"{prefix}gate.weight" not in tensors:
        return _llama(config, tensors, prefix)
    networks = [_network_pairs(tensors, f"{prefix}experts.{e}.") for e in range(config.n_experts)]
    shared = _network_pairs(tensors, f"{prefix}shared_experts.") if config.n_shared_experts else None
    return FeedForward(networks, (tensors[f"{prefix}gate.weight"], tensors[f"{prefix}gate.e_score_correction_bias"]), shared)


def _mixtral(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> FeedForward:
    prefix = prefix.replace("mlp.", "block_sparse_moe.")
    networks = [_network_pairs(tensors, f"{prefix}experts.{e}.", ("w1", "w3", "w2")) for e in range(config.n_experts)]
    return FeedForward(networks, (tensors[f"{prefix}gate.weight"], np.zeros(config.n_experts, np.float32)))


def _llama(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> FeedForward:
    return FeedForward([_network_pairs(tensors, prefix)])


def _network_pairs(tensors: dict[str, Array], prefix: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> tuple[Pair, Pair]:
    gate, up, down = (_pair(tensors, f"{prefix}{name}.weight") for name in names)
    return _above([gate, up]), down


def _pair(tensors: dict[str, Array], name: str) -> Pair:
    """A matrix (outputs, inputs) with its scales (outputs, 1)."""
    return tensors[name], tensors[f"{name}_scale"][:, 0]


def _above(pairs: list[Pair]) -> Pair:
    return np.concatenate([weight for weight, _ in pairs]), np.concatenate([scale for _, scale in pairs])
