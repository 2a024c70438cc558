"""The folder of an INT8 model, read for the compiled decoder: numpy only, nothing is decoded to floating point."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from workers.compression.int8_layers import Matrices
from workers.compression.int8_product import OUTPUTS, SHIFT, pack
from workers.engine.fused import Layers
from workers.engine.fused_weights import Weights
from workers.moe.config import ModelConfig

Array = NDArray
Pair = tuple[Array, Array]  # int8 weights with outputs first, and the scale of each output


class DamagedWeights(ValueError):
    """The folder's weights are missing, damaged, or not those that its config.json describes."""


@dataclass(frozen=True)
class _FeedForward:
    """One layer's networks. `router` is None where the layer is dense."""

    networks: list[tuple[Pair, Pair]]  # gate_up and down of each expert, or of the one network
    router: tuple[Array, Array] | None = None  # weight and bias
    shared: tuple[Pair, Pair] | None = None


def read_weights(folder: Path) -> Weights:
    """The head is the embedding itself where they are tied. DamagedWeights."""
    try:
        described = json.loads((folder / "config.json").read_text())
        config = ModelConfig.from_dict(described["storage"]["model"])
        tensors = load_file(folder / "model.safetensors")
        return _read(config, described["model_type"], tensors)
    except FileNotFoundError as error:
        raise DamagedWeights(f"{folder.name} has no {Path(error.filename or 'model.safetensors').name}.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedWeights(f"The weights of {folder.name} are damaged: {error}.") from error


def _read(config: ModelConfig, model_type: str, tensors: dict[str, Array]) -> Weights:
    embedding = _matrices([_pair(tensors, "model.embed_tokens.weight")])
    head = embedding if config.tie_embeddings else _matrices([_pair(tensors, "lm_head.weight")])
    prefixes = [f"model.layers.{number}." for number in range(config.n_layers)]
    read = {"gpt_oss": _gpt_oss, "glm4_moe": _glm4_moe, "llama": _llama}[model_type]
    networks = [read(config, tensors, f"{prefix}mlp.") for prefix in prefixes]
    routers = [n.router for n in networks if n.router is not None]
    dense_gate_up, dense_down = _network([pairs for n in networks if n.router is None for pairs in n.networks])
    gate_up, down = _network([pairs for n in networks if n.router is not None for pairs in n.networks])
    shared_gate_up, shared_down = _network([n.shared for n in networks if n.shared is not None])
    layers = Layers(
        attention_norm=_stack([tensors[f"{prefix}input_layernorm.weight"] for prefix in prefixes]),
        qkv=_matrices([_above([_pair(tensors, f"{prefix}self_attn.{name}_proj.weight") for name in "qkv"]) for prefix in prefixes]),
        out=_matrices([_pair(tensors, f"{prefix}self_attn.o_proj.weight") for prefix in prefixes]),
        feed_forward_norm=_stack([tensors[f"{prefix}post_attention_layernorm.weight"] for prefix in prefixes]),
        dense_gate_up=dense_gate_up, dense_down=dense_down,
        router=_stack([weight for weight, _ in routers], (0, 0, config.d_model)), bias=_stack([bias for _, bias in routers], (0, 0)),
        gate_up=gate_up, down=down, shared_gate_up=shared_gate_up, shared_down=shared_down,
        heads=config.n_heads, dense_layers=config.dense_layers, d_dense=config.d_dense, d_expert=config.d_expert,
        d_shared=config.n_shared_experts * config.d_expert, top_k=config.top_k, sigmoid=config.router == "sigmoid", eps=config.norm_eps,
    )  # fmt: skip
    return Weights(config, layers, embedding, head, np.ascontiguousarray(tensors["model.norm.weight"], np.float32))


# -- the three architectures as which our decoder is stored (workers.moe.layouts)


def _gpt_oss(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> _FeedForward:
    stacked = f"{prefix}experts.gate_up_proj" in tensors
    networks = _stacked(config, tensors, prefix) if stacked else [_network_pairs(tensors, f"{prefix}experts.{e}.") for e in range(config.n_experts)]
    return _FeedForward(networks, (tensors[f"{prefix}router.weight"], tensors[f"{prefix}router.bias"]))


def _stacked(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> list[tuple[Pair, Pair]]:
    """Experts as earlier versions stored them, in one tensor."""
    gate_up, gate_up_scale = tensors[f"{prefix}experts.gate_up_proj"], tensors[f"{prefix}experts.gate_up_proj_scale"]  # E, in, out; E, 1, out
    down, down_scale = tensors[f"{prefix}experts.down_proj"], tensors[f"{prefix}experts.down_proj_scale"]
    apart = np.concatenate([np.arange(0, gate_up.shape[2], 2), np.arange(1, gate_up.shape[2], 2)])  # gate and up are interleaved
    return [((gate_up[e].T[apart], gate_up_scale[e, 0][apart]), (down[e].T, down_scale[e, 0])) for e in range(config.n_experts)]


def _glm4_moe(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> _FeedForward:
    if f"{prefix}gate.weight" not in tensors:
        return _llama(config, tensors, prefix)
    networks = [_network_pairs(tensors, f"{prefix}experts.{e}.") for e in range(config.n_experts)]
    shared = _network_pairs(tensors, f"{prefix}shared_experts.") if config.n_shared_experts else None
    return _FeedForward(networks, (tensors[f"{prefix}gate.weight"], tensors[f"{prefix}gate.e_score_correction_bias"]), shared)


def _llama(config: ModelConfig, tensors: dict[str, Array], prefix: str) -> _FeedForward:
    return _FeedForward([_network_pairs(tensors, prefix)])


def _network_pairs(tensors: dict[str, Array], prefix: str) -> tuple[Pair, Pair]:
    gate, up, down = (_pair(tensors, f"{prefix}{name}_proj.weight") for name in ("gate", "up", "down"))
    return _above([gate, up]), down


# -- tensors


def _stack(arrays: list[Array], shape_of_none: tuple[int, ...] = ()) -> NDArray[np.float32]:
    return np.stack(arrays).astype(np.float32) if arrays else np.zeros(shape_of_none, np.float32)


def _network(pairs: list[tuple[Pair, Pair]]) -> tuple[Matrices, Matrices]:
    """All gates with their ups, and all downs."""
    return _matrices([gate_up for gate_up, _ in pairs]), _matrices([down for _, down in pairs])


def _pair(tensors: dict[str, Array], name: str) -> Pair:
    """A matrix (outputs, inputs) with its scales (outputs, 1)."""
    return tensors[name], tensors[f"{name}_scale"][:, 0]


def _above(pairs: list[Pair]) -> Pair:
    return np.concatenate([weight for weight, _ in pairs]), np.concatenate([scale for _, scale in pairs])


def _matrices(pairs: list[Pair]) -> Matrices:
    """Pack matrices of one shape."""
    if not pairs:
        return Matrices(np.zeros((0, 0), np.int8), np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int32), 0)
    outputs, inputs = pairs[0][0].shape
    padded = -(-outputs // OUTPUTS) * OUTPUTS
    scale, offset = np.zeros((len(pairs), padded), np.float32), np.zeros((len(pairs), padded), np.int32)
    for number, (weight, scales) in enumerate(pairs):
        if weight.dtype != np.int8 or weight.shape != (outputs, inputs):
            raise DamagedWeights(f"a matrix is {weight.dtype} {weight.shape}, not int8 {(outputs, inputs)}")
        scale[number, :outputs] = scales
        offset[number, :outputs] = -SHIFT * weight.sum(axis=1, dtype=np.int32)
    packed = np.stack([pack(weight).reshape(-1) for weight, _ in pairs])
    return Matrices(packed, scale, offset, inputs)
