"""The decoder as one compiled function: dozens of small operators a layer cost a framework more than their arithmetic.

The arithmetic is the decoder's (`workers.moe.model`), in FP32; a row's logits are the same to the last bit in any company. Compiled
at first use and kept on disk beside this file (numba's cache), for each kind of processor.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from workers.engine.product import __file__ as product_file
from workers.engine.product import product
from workers.engine.rowwise import FAST, INNER, attend, normalise, rotate, route, swiglu
from workers.engine.rowwise import __file__ as rowwise_file

Floats = NDArray[np.float32]


class Layers(NamedTuple):
    """All layers, stacked. The first `dense_layers` have one network each, the others experts, and a shared network where there are any.

    Matrices are panels (`workers.engine.product.pack`): (n, panels, inputs, PANEL).
    """

    attention_norm: Floats  # n_layers, d_model
    qkv: Floats  # n_layers, …
    out: Floats  # n_layers, …
    feed_forward_norm: Floats  # n_layers, d_model
    dense_gate_up: Floats  # dense_layers, …
    dense_down: Floats
    router: Floats  # n_layers - dense_layers, n_experts, d_model
    bias: Floats  # n_layers - dense_layers, n_experts
    gate_up: Floats  # (n_layers - dense_layers) · n_experts, …
    down: Floats
    shared_gate_up: Floats  # n_layers - dense_layers, or none, …
    shared_down: Floats
    heads: int
    dense_layers: int
    top_k: int
    sigmoid: bool
    eps: float


class Scratch(NamedTuple):
    """Room for `rows` tokens; `copies` = rows · max(top_k, 1) of them among experts."""

    stream: Floats  # rows, d_model
    normed: Floats  # rows, d_model
    wide: Floats  # copies, widest output
    hidden: Floats  # copies, widest input
    narrow: Floats  # copies, d_model padded
    copied: Floats  # copies, d_model
    scores: Floats  # positions
    chosen: NDArray[np.int64]  # copies
    share: Floats  # copies
    place: NDArray[np.int64]  # copies: where each went among the sorted
    ends: NDArray[np.int64]  # n_experts + 1
    ranks: Floats  # 2, n_experts


@njit(**INNER, fastmath=FAST)
def _attention(x, slots, positions, layers, number, keys, values, cos, sin, scratch):
    """`x += attention(x)`. `keys`: (slots, kv_heads, width, capacity), `values`: (slots, kv_heads, capacity, width), of this layer."""
    rows = x.shape[0]
    heads, kv_heads, width = layers.heads, keys.shape[1], keys.shape[2]
    normalise(x, rows, layers.attention_norm[number], layers.eps, scratch.normed)
    product(scratch.normed, rows, layers.qkv[number], scratch.wide)
    for row in range(rows):
        qkv, slot, position = scratch.wide[row], slots[row], positions[row]
        rotate(qkv, cos[position], sin[position], heads + kv_heads, width)
        for head in range(kv_heads):
            key, value = (heads + head) * width, (heads + kv_heads + head) * width
            for i in range(width):
                keys[slot, head, i, position] = qkv[key + i]
                values[slot, head, position, i] = qkv[value + i]
    for row in range(rows):  # the keys of all rows are there: a row sees those before it in its own chunk too
        slot, length = slots[row], positions[row] + 1
        for head in range(heads):
            kv, start, end = head * kv_heads // heads, head * width, (head + 1) * width
            attend(scratch.wide[row, start:end], keys[slot, kv], values[slot, kv], length, scratch.scores, scratch.hidden[row, start:end])
    product(scratch.hidden, rows, layers.out[number], scratch.narrow)
    _add(x, scratch.narrow)


@njit(**INNER, fastmath=FAST)
def _add(x, y):
    """`x += y`, of which `y` may have more rows and columns."""
    for row in range(x.shape[0]):
        target, source = x[row], y[row]
        for i in range(len(target)):
            target[i] += source[i]


@njit(**INNER, fastmath=FAST)
def _add_network(x, gate_up, down, scratch):
    """`x += network(normed)` for a network that sees every row."""
    rows, hidden = x.shape[0], down.shape[1]
    product(scratch.normed, rows, gate_up, scratch.wide)
    swiglu(scratch.wide, rows, hidden, scratch.hidden)
    product(scratch.hidden, rows, down, scratch.narrow)
    _add(x, scratch.narrow)


@njit(**INNER)
def _copy(source, target):
    for i in range(len(source)):
        target[i] = source[i]


@njit(**INNER)
def _sort(chosen, copies, experts, ends, place):
    """Where each copy goes when they are sorted by expert, and where each expert's copies end."""
    for expert in range(experts + 1):
        ends[expert] = 0
    for copy in range(copies):
        ends[chosen[copy] + 1] += 1
    for expert in range(experts):
        ends[expert + 1] += ends[expert]
    for copy in range(copies):  # `ends[expert]` is where the expert's next copy goes, and at last where they end
        place[copy] = ends[chosen[copy]]
        ends[chosen[copy]] += 1


@njit(**INNER, fastmath=FAST)
def _add_experts(x, layers, number, scratch):
    """`x += Σ_k share · expert(normed)`. Rows are sorted by expert, so that each expert is one product over its own rows.

    `number`: of the layers with experts.
    """
    rows, d_model = x.shape
    experts, k, hidden = layers.router.shape[1], layers.top_k, layers.down.shape[2]
    route(
        scratch.normed,
        rows,
        layers.router[number],
        layers.bias[number],
        k,
        layers.sigmoid,
        scratch.ranks[0],
        scratch.ranks[1],
        scratch.chosen,
        scratch.share,
    )
    _sort(scratch.chosen, rows * k, experts, scratch.ends, scratch.place)
    for copy in range(rows * k):
        _copy(scratch.normed[copy // k], scratch.copied[scratch.place[copy]])
    for expert in range(experts):
        begin = scratch.ends[expert - 1] if expert else 0
        count = scratch.ends[expert] - begin
        if count:
            product(scratch.copied[begin:], count, layers.gate_up[number * experts + expert], scratch.wide)
            swiglu(scratch.wide, count, hidden, scratch.hidden)
            product(scratch.hidden, count, layers.down[number * experts + expert], scratch.narrow[begin:])
    for row in range(rows):  # in the order of the choice, not of the experts, as the reference adds them
        target = x[row]
        for copy in range(row * k, (row + 1) * k):
            share, said = scratch.share[copy], scratch.narrow[scratch.place[copy]]
            for i in range(d_model):
                target[i] += share * said[i]


@njit(**INNER, fastmath=FAST)
def _feed_forward(x, layers, number, scratch):
    """`x += feed_forward(norm(x))`."""
    normalise(x, x.shape[0], layers.feed_forward_norm[number], layers.eps, scratch.normed)
    if number < layers.dense_layers:
        _add_network(x, layers.dense_gate_up[number], layers.dense_down[number], scratch)
        return
    _add_experts(x, layers, number - layers.dense_layers, scratch)
    if len(layers.shared_gate_up):
        _add_network(x, layers.shared_gate_up[number - layers.dense_layers], layers.shared_down[number - layers.dense_layers], scratch)


@njit(**INNER, fastmath=FAST)
def _decode(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits):
    x = scratch.stream[: len(tokens)]
    for row in range(len(tokens)):
        if tokens[row] < 0:
            _copy(given[-1 - tokens[row]], x[row])
        else:
            _copy(embedding[tokens[row]], x[row])
    for number in range(len(layers.attention_norm)):
        _attention(x, slots, positions, layers, number, keys[number], values[number], cos, sin, scratch)
        _feed_forward(x, layers, number, scratch)
    for i in range(len(last)):
        _copy(x[last[i]], scratch.copied[i])
    normalise(scratch.copied, len(last), norm, layers.eps, scratch.normed)
    product(scratch.normed, len(last), head, logits)


def _sources() -> str:
    """A digest of all code that is compiled into `forward`."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in (__file__, product_file, rowwise_file))).hexdigest()


def _compile(sources: str) -> Callable[..., None]:
    @njit(**{**INNER, "no_cpython_wrapper": False}, cache=True)
    def forward(*arguments):
        # numba's cache asks whether this file has changed, not what it imports: a captured value is part of its key.
        _ = sources
        _decode(*arguments)

    return forward


# forward(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits): all of one forward.
# tokens, slots, positions: (rows,) int64, of which a token of -1 - n is row n of `given`, (n, d_model); last: int64, the rows whose logits are asked for; logits: (len(last), padded), written;
# keys: (n_layers, slots, kv_heads, head_dim, capacity); values: (n_layers, slots, kv_heads, capacity, head_dim).
forward = _compile(_sources())
