"""The decoder as an ONNX graph with a cache of keys and values, for onnxruntime in any language.

Names and shapes are those that Optimum and transformers.js use (B sequences, T new tokens, P past ones, S = P + T):

    input_ids (B, T) int64 · position_ids (B, T) int64 · attention_mask (B, S) int64, 1 where a key may be seen, past ones first
    past_key_values.<layer>.key / .value (B, n_kv_heads, P, head_dim) float32, P = 0 at first
    → logits (B, T, vocab) float32 · present.<layer>.key / .value (B, n_kv_heads, S, head_dim): the past of the next call

Plain operators of opset 18, but for what these cannot say without computing all experts for every token: the experts are onnxruntime's `MoE`
(18 µs a layer for one token of width 128 with 8 experts, where all of them took 118). With `int8`, matrices are 8-bit with one scale for each block
of inputs (`MatMulNBits`; activations are rounded at run time, each token by itself), and experts with one for each output (`QMoE`). Routers stay FP32.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.moe import Decoder, ModelConfig

OPSET = 18
IR_VERSION = 10  # read by onnxruntime from 1.18 on
_HIDDEN = -1e9  # added to the score of a key that may not be seen, or of an expert that is not chosen
CONTRIB = "com.microsoft"  # onnxruntime's own operators
BLOCKS = (128, 64, 32, 16)  # inputs that share a scale: the largest that divides a matrix
ZERO_POINT = 128.0
INT8_ACTIVATIONS = 4  # `accuracy_level`: products of 8-bit with 8-bit numbers

Array = NDArray[Any]


def build_graph(model: Decoder, *, int8: bool = False) -> onnx.ModelProto:
    """The whole model, weights inside."""
    config = model.config
    graph = _Graph({name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}, int8)
    buffers = dict(model.named_buffers())
    x = graph.rows("embedding.weight", "input_ids")
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
    head = "embedding.weight" if config.tie_embeddings else "head.weight"
    graph.linear(_norm(graph, x, "norm.weight", config.norm_eps), graph.state[head].T, head, into="logits")
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

    def __init__(self, state: dict[str, Array], int8: bool):
        self.state, self.int8 = state, int8
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, into: str | None = None, **attributes: Any) -> str:
        """Add a node of one output; its name. `domain` is an attribute too: ONNX's own where there is none."""
        name = into or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, weight: Array, name: str, into: str | None = None) -> str:
        """`x @ weight`; `weight`: (inputs, outputs). Stored as (outputs, inputs), or in 8-bit blocks of these."""
        if not self.int8:
            return self.op("MatMul", x, self.op("Transpose", self.constant(weight.T, name), perm=[1, 0]), into=into)
        inputs, outputs = weight.shape
        quantized, scales, block = self._blocks(weight.T, name)
        return self.op(
            "MatMulNBits",
            x,
            quantized,
            scales,
            into=into,
            domain=CONTRIB,
            K=inputs,
            N=outputs,
            bits=8,
            block_size=block,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def rows(self, name: str, ids: str) -> str:
        """Rows of a matrix, by their numbers."""
        weight = self.state[name]
        if not self.int8:
            return self.op("Gather", self.weight(name), ids, axis=0)
        quantized, scales, block = self._blocks(weight, name)
        blocks = -(-weight.shape[1] // block)
        table = self.op("Reshape", scales, self.ints(-1, blocks, 1))
        centred = self.op("Sub", self.op("Cast", self.op("Gather", quantized, ids, axis=0), to=TensorProto.FLOAT), self.scalar(ZERO_POINT))
        wide = self.shape(self.op("Mul", centred, self.op("Gather", table, ids, axis=0)), 0, 0, blocks * block)
        return self.op("Slice", wide, self.ints(0), self.ints(weight.shape[1]), self.ints(-1))

    def _blocks(self, rows: Array, name: str) -> tuple[str, str, int]:
        """8-bit weights (outputs, blocks, block), their scales (outputs · blocks) and the block's size; a last block is filled up."""
        outputs, inputs = rows.shape
        block = next((size for size in BLOCKS if inputs % size == 0), BLOCKS[-2])
        filled = np.zeros((outputs, -(-inputs // block) * block), np.float32)
        filled[:, :inputs] = rows
        quantized, scales = quantize(filled.reshape(outputs, -1, block))
        return self.constant(quantized, name), self.constant(scales.reshape(-1), f"{name}_scale"), block

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
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="dsportal")


def quantize(rows: Array) -> tuple[Array, Array]:
    """`rows`: (…, inputs) → uint8 around 128, and scales (…): `rows ≈ (quantized - 128) · scale`."""
    scales = np.abs(rows).max(-1) / 127
    quantized = np.round(rows / np.where(scales == 0, 1, scales)[..., None]) + ZERO_POINT
    return quantized.astype(np.uint8), scales.astype(np.float32)


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
    qkv = graph.linear(x, graph.state[f"{prefix}qkv.weight"].T, f"{prefix}qkv.weight")
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
    return graph.linear(out, graph.state[f"{prefix}out.weight"].T, f"{prefix}out.weight")


def _feed_forward(graph: _Graph, config: ModelConfig, prefix: str, x: str, *, dense: bool) -> str:
    if dense:
        return _network(graph, f"{prefix}dense.", x)
    out = _experts(graph, config, prefix, x)
    return graph.op("Add", out, _network(graph, f"{prefix}shared.", x)) if config.n_shared_experts else out


def _network(graph: _Graph, prefix: str, x: str) -> str:
    """SwiGLU."""
    opened, up = (
        graph.linear(x, part, f"{prefix}{name}") for part, name in zip(np.split(graph.state[f"{prefix}gate_up"], 2, axis=-1), ("gate", "up"), strict=True)
    )  # fmt: skip
    hidden = graph.op("Mul", graph.op("Mul", opened, graph.op("Sigmoid", opened)), up)
    return graph.linear(hidden, graph.state[f"{prefix}down"], f"{prefix}down")


def _experts(graph: _Graph, config: ModelConfig, prefix: str, x: str) -> str:
    """The operator wants its weights as (experts, outputs, inputs), gate and up interleaved, and multiplies `up + beta` by `gate · σ(alpha · gate)`."""
    gate, up = np.split(graph.state[f"{prefix}experts.gate_up"].transpose(0, 2, 1), 2, axis=1)  # E, d_expert, d_model
    interleaved = np.stack([gate, up], axis=2).reshape(config.n_experts, -1, config.d_model)
    down = graph.state[f"{prefix}experts.down"].transpose(0, 2, 1)  # E, d_model, d_expert
    attributes: dict[str, Any] = {
        "domain": CONTRIB, "k": config.top_k, "normalize_routing_weights": 1, "activation_type": "swiglu", "swiglu_fusion": 1,
        "activation_alpha": 1.0, "activation_beta": 0.0,
    }  # fmt: skip
    scores = _routing(graph, config, prefix, x)
    names = f"{prefix}experts.gate_up", f"{prefix}experts.down"
    if not graph.int8:
        first, second = (graph.constant(weight, name) for weight, name in zip((interleaved, down), names, strict=True))
        return graph.op("MoE", x, scores, first, "", second, **attributes)
    stored: list[str] = []
    for weight, name in zip((interleaved, down), names, strict=True):
        quantized, scales = quantize(weight)
        stored += [graph.constant(quantized, name), graph.constant(scales, f"{name}_scale")]
    return graph.op("QMoE", x, scores, *stored[:2], "", *stored[2:], expert_weight_bits=8, **attributes)


def _routing(graph: _Graph, config: ModelConfig, prefix: str, x: str) -> str:
    """(B · T, E): scores whose softmax over the chosen ones are the experts' shares (`workers.moe.router`)."""
    weight = graph.constant(graph.state[f"{prefix}router.weight"].T, f"{prefix}router")
    logits = graph.shape(graph.op("MatMul", x, weight), -1, config.n_experts)
    bias = graph.weight(f"{prefix}router.bias")
    if config.router != "sigmoid":
        return graph.op("Add", logits, bias)
    # The bias moves the choice only: the operator is shown the logarithms of the unbiased scores of those that are chosen.
    scores = graph.op("Sigmoid", logits)
    chosen = graph.top_k(graph.op("Add", scores, bias), config.top_k)
    picked = graph.op("Log", graph.op("GatherElements", scores, chosen, axis=-1))
    nobody = graph.op("Add", graph.op("Mul", scores, graph.scalar(0.0)), graph.scalar(_HIDDEN))
    return graph.op("ScatterElements", nobody, chosen, picked, axis=-1)
