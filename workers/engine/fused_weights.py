"""A model's weights as the fused decoder wants them, read without torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 — by it NumPy knows BF16, in which open models come
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from workers.engine.errors import UnusableModel
from workers.engine.fused import Floats, Layers
from workers.engine.product import PANEL, pack
from workers.moe import ModelConfig, UnsupportedModel, import_each, layout_named

_FLOATS = ("F64", "F32", "F16", "BF16")

State = Mapping[str, NDArray[Any]]  # under the names of `workers.moe.model`


class Weights(NamedTuple):
    config: ModelConfig
    layers: Layers
    embedding: Any  # vocab, d_model
    head: Any  # one matrix
    norm: Floats  # d_model


def read_weights(folder: Path, described: dict[str, Any]) -> Weights:
    """`described`: the folder's config.json. UnusableModel where the weights are missing, damaged or of another model."""
    try:
        layout = layout_named(described.get("model_type"))
        config = layout.read_config(described)
        state: Any = dict(import_each(layout, config, described, _reader(folder), lambda entry: np.empty(entry.shape, np.float32)))
        state.setdefault("head.weight", state["embedding.weight"])
        return arrange(config, state)
    except UnsupportedModel as error:
        raise UnusableModel(str(error)) from error
    except FileNotFoundError as error:
        raise UnusableModel(f"{folder.name} has no {Path(error.filename or 'model.safetensors').name}.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnusableModel(f"The weights of {folder.name} are damaged, or are not those its config.json describes: {error}.") from error


def decode_weights(folder: Path) -> Weights:
    """For weights stored in a way of their own (pruned, …): decoded by `load_model`, which needs torch. UnusableModel."""
    from workers.moe import BrokenModel, load_model

    try:
        model, _ = load_model(folder)
    except (BrokenModel, UnsupportedModel) as error:
        raise UnusableModel(str(error)) from error
    return arrange(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def _reader(folder: Path) -> Callable[[str], Any]:
    """Gives a tensor by name, in the type of the file. Each is read when it is asked for: beside the weights no more is held than one."""
    index = folder / "model.safetensors.index.json"
    # A shard is a file of this folder: a path in the index must not lead out of it.
    names = sorted({Path(n).name for n in json.loads(index.read_text())["weight_map"].values()}) if index.exists() else ["model.safetensors"]
    where: dict[str, Any] = {}
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(2, "missing", str(folder / name))
        file = safe_open(folder / name, framework="numpy")
        where |= dict.fromkeys(file.keys(), file)

    def read(name: str) -> NDArray[Any]:
        file = where[name]
        if (stored := file.get_slice(name).get_dtype()) not in _FLOATS:
            raise ValueError(f"{name} is stored as {stored}, and config.json names no quantization")
        array: NDArray[Any] = file.get_tensor(name)
        return array

    return read


def arrange(config: ModelConfig, state: State) -> Weights:
    """KeyError or ValueError where `state` is not a model of this shape."""

    def stacked(name: str, numbers: range) -> Floats:
        return np.stack([_floats(state[f"blocks.{n}.{name}"]) for n in numbers]) if numbers else np.zeros((0, 1), np.float32)

    def linear(name: str, numbers: range) -> Floats:  # stored with outputs first
        return _panels([state[f"blocks.{n}.{name}"].T for n in numbers])

    def network(name: str, numbers: range) -> Floats:  # stored with inputs first
        return _panels([state[f"blocks.{n}.feed_forward.{name}"] for n in numbers])

    def experts(name: str) -> Floats:
        return _panels([matrix for n in mixed for matrix in state[f"blocks.{n}.feed_forward.experts.{name}"]])

    every, dense = range(config.n_layers), range(config.dense_layers)
    mixed = range(config.dense_layers, config.n_layers)
    shared = mixed if config.n_shared_experts else range(0)
    layers = Layers(
        attention_norm=stacked("attention_norm.weight", every), qkv=linear("attention.qkv.weight", every), out=linear("attention.out.weight", every),
        feed_forward_norm=stacked("feed_forward_norm.weight", every), dense_gate_up=network("dense.gate_up", dense), dense_down=network("dense.down", dense),
        router=stacked("feed_forward.router.weight", mixed) if mixed else np.zeros((0, 1, 1), np.float32),
        bias=stacked("feed_forward.router.bias", mixed), gate_up=experts("gate_up"), down=experts("down"),
        shared_gate_up=network("shared.gate_up", shared), shared_down=network("shared.down", shared),
        dense_layers=config.dense_layers, d_dense=config.d_dense, d_expert=config.d_expert,
        d_shared=config.n_shared_experts * config.d_expert, top_k=config.top_k, sigmoid=config.router == "sigmoid", eps=config.norm_eps,
    )  # fmt: skip
    _require_shapes(config, layers, state)
    head = state["embedding.weight" if config.tie_embeddings else "head.weight"]
    return Weights(config, layers, _floats(state["embedding.weight"]), _panels([_floats(head).T]), _floats(state["norm.weight"]))


def _floats(array: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(array, np.float32)


def _panels(matrices: list[NDArray[Any]]) -> Floats:
    return np.stack([pack(m) for m in matrices]) if matrices else np.zeros((0, 1, 1, PANEL), np.float32)


def _require_shapes(config: ModelConfig, layers: Layers, state: State) -> None:
    """Compiled code checks no bounds: what does not fit the configuration must not reach it."""
    d, hidden = config.d_model, config.n_heads * config.head_dim
    qkv = hidden + 2 * config.n_kv_heads * config.head_dim
    shared = config.n_shared_experts * config.d_expert
    expected = [
        (layers.qkv, d, qkv), (layers.out, hidden, d), (layers.dense_gate_up, d, 2 * config.d_dense), (layers.dense_down, config.d_dense, d),
        (layers.gate_up, d, 2 * config.d_expert), (layers.down, config.d_expert, d), (layers.shared_gate_up, d, 2 * shared), (layers.shared_down, shared, d),
    ]  # fmt: skip
    for panels, inputs, outputs in expected:
        if len(panels) and panels.shape[1:] != (-(-outputs // PANEL), inputs, PANEL):
            raise ValueError(f"a matrix has {panels.shape[2]} inputs and about {panels.shape[1] * PANEL} outputs, not {inputs} and {outputs}")
    shapes = {
        "embedding.weight": (config.vocab_size, d), "head.weight": (config.vocab_size, d), "norm.weight": (d,),
    }  # fmt: skip
    found = {name: state[name].shape for name in shapes}
    found |= {"norms": layers.attention_norm.shape[1:], "feed-forward norms": layers.feed_forward_norm.shape[1:]}
    shapes |= {"norms": (d,), "feed-forward norms": (d,)}
    if config.is_moe:
        mixed = config.n_layers - config.dense_layers
        found |= {"routers": layers.router.shape, "router biases": layers.bias.shape, "experts": layers.gate_up.shape[:1]}
        shapes |= {"routers": (mixed, config.n_experts, d), "router biases": (mixed, config.n_experts), "experts": (mixed * config.n_experts,)}
    for name, shape in shapes.items():
        if tuple(found[name]) != shape:
            raise ValueError(f"{name} has the shape {tuple(found[name])}, not {shape}")
