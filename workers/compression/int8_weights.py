"""The weights of an INT8 model, packed for the compiled decoder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.compression.int8_folder import Array, Pair, read_folder
from workers.compression.int8_layers import Matrices
from workers.compression.int8_product import OUTPUTS, SHIFT, pack
from workers.engine.fused import Layers
from workers.engine.fused_weights import Weights


def read_weights(folder: Path) -> Weights:
    """The head is the embedding itself where they are tied. DamagedWeights."""
    model = read_folder(folder)
    config, layers = model.config, model.layers
    networks = [layer.feed_forward for layer in layers]
    routers = [n.router for n in networks if n.router is not None]
    dense_gate_up, dense_down = _network([pairs for n in networks if n.router is None for pairs in n.networks])
    gate_up, down = _network([pairs for n in networks if n.router is not None for pairs in n.networks])
    shared_gate_up, shared_down = _network([n.shared for n in networks if n.shared is not None])
    embedding = _matrices([model.embedding])
    packed = Layers(
        attention_norm=_stack([layer.attention_norm for layer in layers]), qkv=_matrices([layer.qkv for layer in layers]),
        out=_matrices([layer.out for layer in layers]), feed_forward_norm=_stack([layer.feed_forward_norm for layer in layers]),
        dense_gate_up=dense_gate_up, dense_down=dense_down,
        router=_stack([weight for weight, _ in routers], (0, 0, config.d_model)), bias=_stack([bias for _, bias in routers], (0, 0)),
        gate_up=gate_up, down=down, shared_gate_up=shared_gate_up, shared_down=shared_down,
        dense_layers=config.dense_layers, d_dense=config.d_dense, d_expert=config.d_expert,
        d_shared=config.n_shared_experts * config.d_expert, top_k=config.top_k, sigmoid=config.router == "sigmoid", eps=config.norm_eps,
    )  # fmt: skip
    head = embedding if config.tie_embeddings else _matrices([model.head])
    return Weights(config, packed, embedding, head, np.ascontiguousarray(model.norm, np.float32))


def _stack(arrays: list[Array], shape_of_none: tuple[int, ...] = ()) -> NDArray[np.float32]:
    return np.stack(arrays).astype(np.float32) if arrays else np.zeros(shape_of_none, np.float32)


def _network(pairs: list[tuple[Pair, Pair]]) -> tuple[Matrices, Matrices]:
    """All gates with their ups, and all downs."""
    return _matrices([gate_up for gate_up, _ in pairs]), _matrices([down for _, down in pairs])


def _matrices(pairs: list[Pair]) -> Matrices:
    """Pack matrices of one shape."""
    if not pairs:
        return Matrices(np.zeros((0, 0), np.int8), np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int32), 0)
    outputs, inputs = pairs[0][0].shape
    padded = -(-outputs // OUTPUTS) * OUTPUTS
    scale, offset = np.zeros((len(pairs), padded), np.float32), np.zeros((len(pairs), padded), np.int32)
    for number, (weight, scales) in enumerate(pairs):
        scale[number, :outputs] = scales
        offset[number, :outputs] = -SHIFT * weight.sum(axis=1, dtype=np.int32)
    packed = np.stack([pack(weight).reshape(-1) for weight, _ in pairs])
    return Matrices(packed, scale, offset, inputs)
