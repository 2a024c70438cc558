"""The decoder as an ONNX graph with a cache of keys and values, in plain operators of opset 18: any runtime and language can run it.

Names and shapes are those that Optimum and transformers.js use (B sequences, T new tokens, P past ones, S = P + T):

    input_ids (B, T) int64 · position_ids (B, T) int64 · attention_mask (B, S) int64, 1 where a key may be seen, past ones first
    past_key_values.<layer>.key / .value (B, n_kv_heads, P, head_dim) float32, P = 0 at first
    → logits (B, T, vocab) float32 · present.<layer>.key / .value (B, n_kv_heads, S, head_dim): the past of the next call

Experts: all of them see every token, and the unchosen count for nothing. That has no shape that depends on data, and its two products
are large ones: for the small models here quicker in onnxruntime than gathering weights for each token (docs: benchmarks).
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.moe import Decoder, ModelConfig

OPSET = 18
IR_VERSION = 10  # read by onnxruntime from 1.18 on
_HIDDEN = -1e9  # added to the score of a key that may not be seen

Array = NDArray[Any]


def build_graph(model: Decoder) -> onnx.ModelProto:
    """The whole model, weights inside."""
    config = model.config
    graph = _Graph({name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()})
    buffers = dict(model.named_buffers())
    x = graph.op("Gather", graph.weight("embedding.weight"), "input_ids", axis=0)
    cos, sin = (
        graph.op("Unsqueeze", graph.op("Gather", graph.constant(table, name), "position_ids", axis=0), graph.ints(1))
        for name, table in (("cos", buffers["cos"].numpy()), ("sin", buffers["sin"].numpy()))
    )  # B, 1, T, head_dim / 2
    bias = _mask(graph, config.n_heads // config.n_kv_heads)
    for layer in range(config.n_layers):
        x = graph.op(
            "Add", x, _attention(graph, config, layer, _norm(graph, x, f"blocks.{layer}.attention_norm.weight", config.norm_eps), cos, sin, bias)
        )
        normed = _norm(graph, x, f"blocks.{layer}.feed_forward_norm.weight", config.norm_eps)
        x = graph.op("Add", x, _feed_forward(graph, config, f"blocks.{layer}.feed_forward.", normed, dense=layer < config.dense_layers))
    head = graph.weight("embedding.weight" if config.tie_embeddings else "head.weight")
    graph.op("MatMul", _norm(graph, x, "norm.weight", config.norm_eps), graph.op("Transpose", head, perm=[1, 0]), into="logits")
    return graph.model(*_signature(config))


def _signature(config: ModelConfig) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        shape = "batch", config.n_kv_heads, length, config.head_dim
        return [value(f"{prefix}.{layer}.{part}", TensorProto.FLOAT, *shape) for layer in range(config.n_layers) for part in ("key", "value")]

    ids = [value(name, TensorProto.INT64, "batch", "tokens") for name in ("input_ids", "position_ids")]
    mask = value("attention_mask", TensorProto.INT64, "batch", "total")
    logits = value("logits", TensorProto.FLOAT, "batch", "tokens", config.vocab_size)
    return [*ids, mask, *cache("past_key_values", "past")], [logits, *cache("present", "total")]


class _Graph:
    """Nodes and weights as they are added."""

    def __init__(self, state: dict[str, Array]):
        self.state = state
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, into: str | None = None, **attributes: Any) -> str:
        """Add a node of one output; its name."""
        name = into or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def split(self, value: str, sizes: list[int]) -> list[str]:
        names = [f"split_{len(self._nodes)}_{i}" for i in range(len(sizes))]
        self._nodes.append(helper.make_node("Split", [value, self.ints(*sizes)], names, axis=-1))
        return names

    def top_k(self, value: str, k: int) -> str:
        """The indices of the k largest."""
        names = [f"top_values_{len(self._nodes)}", f"top_{len(self._nodes)}"]
        self._nodes.append(helper.make_node("TopK", [value, self.ints(k)], names, axis=-1))
        return names[1]

    def weight(self, name: str) -> str:
        return self.constant(self.state[name], name)

    def constant(self, value: Array, name: str) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "ints_" + "_".join(map(str, values)))

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32), f"scalar_{value!r}")

    def shape(self, value: str, *sizes: int) -> str:
        """Reshape; 0 keeps a size, -1 is what is left."""
        return self.op("Reshape", value, self.ints(*sizes))

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, "decoder", inputs, outputs, list(self._constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="dsportal")


def _norm(graph: _Graph, x: str, weight: str, eps: float) -> str:
    """RMSNorm, in the operators that runtimes recognise and fuse."""
    mean = graph.op("ReduceMean", graph.op("Pow", x, graph.scalar(2.0)), graph.ints(-1), keepdims=1)
    root = graph.op("Sqrt", graph.op("Add", mean, graph.scalar(eps)))
    return graph.op("Mul", graph.op("Div", x, root), graph.weight(weight))


def _mask(graph: _Graph, group: int) -> str:
    """What is added to scores, (B, 1, group · T, S): a token sees the keys up to its own that the attention mask allows."""
    new = graph.op("Gather", graph.op("Shape", "input_ids"), graph.constant(np.array(1), "one"), axis=0)
    total = graph.op("Gather", graph.op("Shape", "attention_mask"), graph.constant(np.array(1), "one"), axis=0)
    zero, one = graph.constant(np.array(0), "zero"), graph.constant(np.array(1), "one")
    rows = graph.op("Add", graph.op("Range", zero, new, one), graph.op("Sub", total, new))
    causal = graph.op("LessOrEqual", graph.op("Range", zero, total, one), graph.op("Unsqueeze", rows, graph.ints(1)))  # T, S
    allowed = graph.op("Unsqueeze", graph.op("Cast", "attention_mask", to=TensorProto.BOOL), graph.ints(1, 2))  # B, 1, 1, S
    bias = graph.op("Where", graph.op("And", causal, allowed), graph.scalar(0.0), graph.scalar(_HIDDEN))
    return graph.op("Concat", *[bias] * group, axis=2)


def _rotate(graph: _Graph, x: str, cos: str, sin: str, head_dim: int) -> str:
    """`x`: (B, heads, T, head_dim); halves rotated together."""
    first, second = graph.split(x, [head_dim // 2] * 2)
    left = graph.op("Sub", graph.op("Mul", first, cos), graph.op("Mul", second, sin))
    right = graph.op("Add", graph.op("Mul", second, cos), graph.op("Mul", first, sin))
    return graph.op("Concat", left, right, axis=-1)


def _attention(graph: _Graph, config: ModelConfig, layer: int, x: str, cos: str, sin: str, bias: str) -> str:
    prefix, heads, kv, width = f"blocks.{layer}.attention.", config.n_heads, config.n_kv_heads, config.head_dim
    qkv = graph.op("MatMul", x, graph.constant(graph.state[f"{prefix}qkv.weight"].T, f"{prefix}qkv"))
    parts = graph.split(qkv, [heads * width, kv * width, kv * width])
    q, k, v = (
        graph.op("Transpose", graph.shape(part, 0, 0, count, width), perm=[0, 2, 1, 3]) for part, count in zip(parts, (heads, kv, kv), strict=True)
    )  # fmt: skip
    q, k = _rotate(graph, q, cos, sin, width), _rotate(graph, k, cos, sin, width)
    k = graph.op("Concat", f"past_key_values.{layer}.key", k, axis=2, into=f"present.{layer}.key")
    v = graph.op("Concat", f"past_key_values.{layer}.value", v, axis=2, into=f"present.{layer}.value")
    # Queries that share a key head lie one below the other: B, kv_heads, group · T, head_dim.
    grouped = graph.shape(graph.op("Mul", q, graph.scalar(width**-0.5)), 0, kv, -1, width)
    scores = graph.op("Softmax", graph.op("Add", graph.op("MatMul", grouped, graph.op("Transpose", k, perm=[0, 1, 3, 2])), bias), axis=-1)
    out = graph.shape(graph.op("MatMul", scores, v), 0, heads, -1, width)
    out = graph.shape(graph.op("Transpose", out, perm=[0, 2, 1, 3]), 0, 0, heads * width)
    return graph.op("MatMul", out, graph.constant(graph.state[f"{prefix}out.weight"].T, f"{prefix}out"))


def _feed_forward(graph: _Graph, config: ModelConfig, prefix: str, x: str, *, dense: bool) -> str:
    if dense:
        return _network(graph, f"{prefix}dense.", x)
    out = _experts(graph, config, prefix, x)
    return graph.op("Add", out, _network(graph, f"{prefix}shared.", x)) if config.n_shared_experts else out


def _network(graph: _Graph, prefix: str, x: str) -> str:
    gate, up = np.split(graph.state[f"{prefix}gate_up"], 2, axis=-1)
    hidden = _gated(graph, x, graph.constant(gate, f"{prefix}gate"), graph.constant(up, f"{prefix}up"))
    return graph.op("MatMul", hidden, graph.weight(f"{prefix}down"))


def _gated(graph: _Graph, x: str, gate: str, up: str) -> str:
    """SwiGLU's hidden units."""
    opened = graph.op("MatMul", x, gate)
    return graph.op("Mul", graph.op("Mul", opened, graph.op("Sigmoid", opened)), graph.op("MatMul", x, up))


def _experts(graph: _Graph, config: ModelConfig, prefix: str, x: str) -> str:
    """All experts side by side as one wide network, whose hidden units are weighted by their expert's share."""
    experts, width, d_model = config.n_experts, config.d_expert, config.d_model
    gate, up = np.split(graph.state[f"{prefix}experts.gate_up"], 2, axis=-1)  # E, d_model, d_expert
    wide = [graph.constant(part.transpose(1, 0, 2).reshape(d_model, -1), f"{prefix}experts.{name}") for part, name in ((gate, "gate"), (up, "up"))]
    hidden = graph.shape(_gated(graph, x, *wide), 0, 0, experts, width)
    weighted = graph.shape(graph.op("Mul", hidden, _shares(graph, config, prefix, x)), 0, 0, experts * width)
    down = graph.state[f"{prefix}experts.down"].reshape(experts * width, d_model)
    return graph.op("MatMul", weighted, graph.constant(down, f"{prefix}experts.down"))


def _shares(graph: _Graph, config: ModelConfig, prefix: str, x: str) -> str:
    """(B, T, E, 1): each expert's share, zero for those that are not chosen (`workers.moe.router`)."""
    logits = graph.op("MatMul", x, graph.constant(graph.state[f"{prefix}router.weight"].T, f"{prefix}router"))
    bias = graph.weight(f"{prefix}router.bias")
    if config.router == "sigmoid":
        scores = graph.op("Sigmoid", logits)
        chosen = graph.top_k(graph.op("Add", scores, bias), config.top_k)
    else:
        scores = graph.op("Softmax", graph.op("Add", logits, bias), axis=-1)
        chosen = graph.top_k(scores, config.top_k)
    picked = graph.op("GatherElements", scores, chosen, axis=-1)
    shares = graph.op("Div", picked, graph.op("ReduceSum", picked, graph.ints(-1), keepdims=1))
    nothing = graph.op("Mul", scores, graph.scalar(0.0))
    return graph.op("Unsqueeze", graph.op("ScatterElements", nothing, chosen, shares, axis=-1), graph.ints(-1))
