"""An INT8 decoder, compiled: one call for a whole forward, because each small step of a small model costs less than calling PyTorch does.

The arithmetic is the decoder's (`workers.moe.model`), but that each matrix sees its rows rounded to 8 bits, each row with a scale of
its own (dynamic quantization). Norms, routing, attention and activation stay in FP32.
"""

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numpy.typing import NDArray

from workers.compression.int8_product import SHIFT, intrinsic, product, stay_apart

# LLVM's freedoms but `ninf` and `nnan`: an expert already chosen ranks at minus infinity. A division that checks for zero (Python's
# way) would keep its loop from running sixteen wide.
_COMPILED: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}


class Matrices(NamedTuple):
    """`n` matrices of one shape, packed for `product`. `weight`: (n, bytes) int8, `scale` and `offset`: (n, padded outputs)."""

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    offset: NDArray[np.int32]
    inputs: int  # padded
    outputs: int  # not padded


class Network(NamedTuple):
    """SwiGLU networks of one shape, one behind the other for all layers that have them; of no matrix where none has."""

    gate_up: Matrices
    down: Matrices


class Layers(NamedTuple):
    """All layers, stacked. The first `dense_layers` have one network each, the others `experts`, and a shared network where there are any."""

    attention_norm: NDArray[np.float32]  # n_layers, d_model
    qkv: Matrices
    out: Matrices
    feed_forward_norm: NDArray[np.float32]  # n_layers, d_model
    dense: Network  # dense_layers
    router: NDArray[np.float32]  # n_layers - dense_layers, n_experts, d_model
    bias: NDArray[np.float32]  # n_layers - dense_layers, n_experts
    experts: Network  # (n_layers - dense_layers) · n_experts
    shared: Network  # n_layers - dense_layers, or none
    heads: int
    dense_layers: int
    top_k: int
    sigmoid: bool
    eps: float


class Scratch(NamedTuple):
    """Room for `rows` tokens; `copies` = rows · max(top_k, 1) of them among experts."""

    stream: NDArray[np.float32]  # rows, d_model
    normed: NDArray[np.float32]  # rows, d_model
    bytes_in: NDArray[np.uint8]  # rows, widest input
    scale_in: NDArray[np.float32]  # rows
    bytes_hidden: NDArray[np.uint8]  # rows, widest input
    scale_hidden: NDArray[np.float32]  # rows
    bytes_sorted: NDArray[np.uint8]  # copies, d_model padded
    scale_sorted: NDArray[np.float32]  # copies
    wide: NDArray[np.float32]  # rows, widest output
    narrow: NDArray[np.float32]  # rows, d_model padded
    hidden: NDArray[np.float32]  # rows, widest input
    scores: NDArray[np.float32]  # positions
    chosen: NDArray[np.int64]  # copies
    share: NDArray[np.float32]  # copies
    owner: NDArray[np.int64]  # copies


def _compiled_once(function: Any) -> Any:
    """Compiled at the first start only: 15 s. What is compiled is kept beside this file or in the user's cache, where one can be written.

    Numba looks at this file's date alone: after a change in `int8_product.py`, touch this file. It does not survive a renamed NamedTuple.
    """
    try:
        return njit(cache=True, **_COMPILED)(function)
    except RuntimeError:  # there is no place for a cache
        return njit(**_COMPILED)(function)


@intrinsic
def _floor(typing_context, x):
    """As a float32: Python's `floor` makes an integer of 64 bits, sixteen of which do not fit a register."""
    del typing_context, x
    return types.float32(types.float32), lambda context, builder, signature, args: builder.call(
        builder.module.declare_intrinsic("llvm.floor", [ir.FloatType()]), args
    )


@intrinsic
def _two_to(typing_context, n):
    """2^n of a whole float32 from -126 to 127: n moved to where a float32 has its exponent."""
    del typing_context, n

    def emit(context, builder, signature, args):
        integer = ir.IntType(32)
        exponent = builder.add(builder.fptosi(args[0], integer), integer(127))
        return builder.bitcast(builder.shl(exponent, integer(23)), ir.FloatType())

    return types.float32(types.float32), emit


@njit(**_COMPILED)
def _exp(x):
    """e^x to 3e-7, in code that runs sixteen at a time: 2^n · e^r with |r| ≤ ln 2 / 2, a polynomial (Cephes, expf)."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = _floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1.0)) * _two_to(n)


@njit(**_COMPILED)
def quantize_rows(x, rows, width, into, scale):
    """Round each row to 8 bits about zero: `x ≈ (into − 128) · scale`."""
    stay_apart()
    for row in range(rows):
        largest = np.float32(0.0)
        for i in range(width):
            largest = max(largest, abs(x[row, i]))
        step = largest / np.float32(127.0)
        inverse = np.float32(1.0) / step if step > np.float32(1e-30) else np.float32(0.0)
        scale[row] = step
        for i in range(width):
            into[row, i] = np.uint8(np.int32(x[row, i] * inverse + np.float32(SHIFT + 0.5)))


@njit(**_COMPILED)
def _normalise(x, rows, weight, eps, into):
    width = len(weight)
    for row in range(rows):
        total = np.float32(0.0)
        for i in range(width):
            total += x[row, i] * x[row, i]
        factor = np.float32(1.0 / sqrt(total / width + eps))
        for i in range(width):
            into[row, i] = x[row, i] * factor * weight[i]


@njit(**_COMPILED)
def _embed(tokens, given, head, into):
    """Rows of the packed embedding, or where a token is -1 - n, row n of `given`. `into`: (rows, d_model)."""
    weight, inputs = head.weight[0], head.inputs
    for row in range(len(tokens)):
        token = tokens[row]
        if token < 0:
            for i in range(into.shape[1]):
                into[row, i] = given[-1 - token, i]
            continue
        start = (token // 16) * inputs * 16 + (token % 16) * 4
        scale = head.scale[0, token]
        for i in range(into.shape[1]):
            into[row, i] = np.float32(weight[start + (i // 4) * 64 + i % 4]) * scale


@njit(**_COMPILED)
def _rotate(heads, cos, sin, count, width):
    half = width // 2
    for head in range(count):
        start = head * width
        left, right = heads[start : start + half], heads[start + half : start + width]
        for i in range(half):
            first, second = left[i], right[i]
            left[i] = first * cos[i] - second * sin[i]
            right[i] = second * cos[i] + first * sin[i]


@njit(**_COMPILED)
def _attend(query, keys, values, length, scores, into):
    """`keys`: (width, capacity), so that scores are made many positions at a time; `values`: (capacity, width)."""
    stay_apart()
    width = len(query)
    factor = np.float32(1.0 / sqrt(width))
    first = query[0] * factor
    for p in range(length):
        scores[p] = first * keys[0, p]
    for i in range(1, width):
        q = query[i] * factor
        for p in range(length):
            scores[p] += q * keys[i, p]
    largest = scores[0]
    for p in range(1, length):
        largest = max(largest, scores[p])
    total = np.float32(0.0)
    for p in range(length):
        e = _exp(scores[p] - largest)
        scores[p] = e
        total += e
    for i in range(width):
        into[i] = np.float32(0.0)
    for p in range(length):
        share = scores[p]
        for i in range(width):
            into[i] += share * values[p, i]
    inverse = np.float32(1.0) / total
    for i in range(width):
        into[i] *= inverse


@njit(**_COMPILED)
def _attention(x, slots, positions, layers, number, keys, values, cos, sin, scratch):
    """`x += attention(x)`. `keys`: (slots, kv_heads, width, capacity), `values`: (slots, kv_heads, capacity, width), of this layer."""
    rows, d_model = x.shape
    heads, kv_heads, width = layers.heads, keys.shape[1], keys.shape[2]
    _normalise(x, rows, layers.attention_norm[number], layers.eps, scratch.normed)
    quantize_rows(scratch.normed, rows, d_model, scratch.bytes_in, scratch.scale_in)
    _multiply(scratch.bytes_in, scratch.scale_in, rows, layers.qkv, number, scratch.wide)
    for row in range(rows):
        qkv, slot, position = scratch.wide[row], slots[row], positions[row]
        _rotate(qkv, cos[position], sin[position], heads + kv_heads, width)
        for head in range(kv_heads):
            key, value = (heads + head) * width, (heads + kv_heads + head) * width
            for i in range(width):
                keys[slot, head, i, position] = qkv[key + i]
                values[slot, head, position, i] = qkv[value + i]
    for row in range(rows):
        slot, length = slots[row], positions[row] + 1
        for head in range(heads):
            kv, start, end = head * kv_heads // heads, head * width, (head + 1) * width
            _attend(scratch.wide[row, start:end], keys[slot, kv], values[slot, kv], length, scratch.scores, scratch.hidden[row, start:end])
    quantize_rows(scratch.hidden, rows, heads * width, scratch.bytes_in, scratch.scale_in)
    _multiply(scratch.bytes_in, scratch.scale_in, rows, layers.out, number, scratch.narrow)
    for row in range(rows):
        for i in range(d_model):
            x[row, i] += scratch.narrow[row, i]


@njit(**_COMPILED)
def _route(x, rows, router, bias, k, sigmoid, chosen, share):
    """The k experts of each row and their weights, which sum to 1 (`workers.moe.router`)."""
    stay_apart()
    experts, d_model = router.shape
    scores = np.empty(experts, np.float32)  # by which weights are given
    ranks = np.empty(experts, np.float32)  # by which experts are chosen
    for row in range(rows):
        for expert in range(experts):
            total = np.float32(0.0)
            for i in range(d_model):
                total += x[row, i] * router[expert, i]
            if sigmoid:
                scores[expert] = np.float32(1.0) / (np.float32(1.0) + _exp(-total))
                ranks[expert] = scores[expert] + bias[expert]
            else:
                ranks[expert] = total + bias[expert]
        if not sigmoid:
            largest = ranks.max()
            for expert in range(experts):
                scores[expert] = _exp(ranks[expert] - largest)
        total = np.float32(0.0)
        for place in range(k):
            best = 0
            for expert in range(1, experts):
                if ranks[expert] > ranks[best]:
                    best = expert
            chosen[row * k + place] = best
            share[row * k + place] = scores[best]
            total += scores[best]
            ranks[best] = np.float32(-np.inf)
        for place in range(k):
            share[row * k + place] /= total


@njit(**_COMPILED)
def _swiglu(gate_up, rows, width, into):
    for row in range(rows):
        gate, up, out = gate_up[row, :width], gate_up[row, width : 2 * width], into[row]  # indices that are sums would keep it from running 16 wide
        for i in range(width):
            out[i] = gate[i] / (np.float32(1.0) + _exp(-gate[i])) * up[i]


@njit(**_COMPILED)
def _multiply(bytes_in, scale_in, rows, matrices, number, out):
    product(bytes_in, scale_in, rows, matrices.weight[number], matrices.scale[number], matrices.offset[number], matrices.inputs, out)


@njit(**_COMPILED)
def _run_network(bytes_in, scale_in, network, number, scratch):
    """The rows of `bytes_in` through one SwiGLU network, into `scratch.narrow`."""
    stay_apart()
    rows, hidden = len(scale_in), network.gate_up.outputs // 2
    _multiply(bytes_in, scale_in, rows, network.gate_up, number, scratch.wide)
    _swiglu(scratch.wide, rows, hidden, scratch.hidden)
    quantize_rows(scratch.hidden, rows, hidden, scratch.bytes_hidden, scratch.scale_hidden)
    _multiply(scratch.bytes_hidden, scratch.scale_hidden, rows, network.down, number, scratch.narrow)


@njit(**_COMPILED)
def _add_network(x, network, number, scratch):
    """`x += network(…)` for a network that sees every row."""
    rows, d_model = x.shape
    _run_network(scratch.bytes_in[:rows], scratch.scale_in[:rows], network, number, scratch)
    for row in range(rows):
        for i in range(d_model):
            x[row, i] += scratch.narrow[row, i]


@njit(**_COMPILED)
def _add_experts(x, layers, number, scratch):
    """`x += Σ_k share · expert(…)`. Rows are sorted by expert, so that each expert is one product over its own. `number`: of the layers with experts."""
    rows, d_model = x.shape
    experts, k = layers.router.shape[1], layers.top_k
    _route(scratch.normed, rows, layers.router[number], layers.bias[number], k, layers.sigmoid, scratch.chosen, scratch.share)
    counts = np.zeros(experts, np.int64)
    for copy in range(rows * k):
        counts[scratch.chosen[copy]] += 1
    ends = np.cumsum(counts) - counts  # where each expert's rows begin; moved below to where they end
    for copy in range(rows * k):
        place = ends[scratch.chosen[copy]]
        ends[scratch.chosen[copy]] += 1
        scratch.owner[place] = copy
        scratch.scale_sorted[place] = scratch.scale_in[copy // k]
        scratch.bytes_sorted[place, :d_model] = scratch.bytes_in[copy // k, :d_model]
    begin = 0
    for expert in range(experts):
        end = ends[expert]
        if end > begin:
            _run_network(scratch.bytes_sorted[begin:end], scratch.scale_sorted[begin:end], layers.experts, number * experts + expert, scratch)
            for place in range(begin, end):
                copy = scratch.owner[place]
                share = scratch.share[copy]
                for i in range(d_model):
                    x[copy // k, i] += share * scratch.narrow[place - begin, i]
        begin = end


@njit(**_COMPILED)
def _feed_forward(x, layers, number, scratch):
    """`x += feed_forward(norm(x))`."""
    rows, d_model = x.shape
    _normalise(x, rows, layers.feed_forward_norm[number], layers.eps, scratch.normed)
    quantize_rows(scratch.normed, rows, d_model, scratch.bytes_in, scratch.scale_in)
    if number < layers.dense_layers:
        _add_network(x, layers.dense, number, scratch)
        return
    _add_experts(x, layers, number - layers.dense_layers, scratch)
    if len(layers.shared.gate_up.weight):
        _add_network(x, layers.shared, number - layers.dense_layers, scratch)


@njit(nogil=True, cache=True)
def decode(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits):
    """All of one forward. `tokens`, `slots`, `positions`: (rows,); `last`: the rows whose logits are asked for; `given`: (n, d_model), rows in place of
    tokens; `logits`: (len(last), padded).

    `keys`: (n_layers, slots, kv_heads, head_dim, capacity), `values`: (n_layers, slots, kv_heads, capacity, head_dim).
    """
    x = scratch.stream[: len(tokens)]
    d_model = x.shape[1]
    _embed(tokens, given, embedding, x)
    for number in range(len(layers.attention_norm)):
        _attention(x, slots, positions, layers, number, keys[number], values[number], cos, sin, scratch)
        _feed_forward(x, layers, number, scratch)
    for i in range(len(last)):
        scratch.hidden[i, :d_model] = x[last[i]]
    _normalise(scratch.hidden, len(last), norm, layers.eps, scratch.normed)
    quantize_rows(scratch.normed, len(last), d_model, scratch.bytes_in, scratch.scale_in)
    _multiply(scratch.bytes_in, scratch.scale_in, len(last), head, 0, logits)
