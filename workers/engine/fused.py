"""The decoder as one compiled function: dozens of small operators a layer cost a framework more than their arithmetic.

The arithmetic is the decoder's (`workers.moe.model`); a row's logits are the same to the last bit in any company. Norms, routing, attention and
activation are FP32; the products are those of the matrices' type (`arithmetic.py`): one decoder, FP32 and INT8. Compiled at first use and
kept on disk beside this file (numba's cache), for each kind of processor.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from workers.engine import arithmetic, attention, product, rowwise
from workers.engine.arithmetic import look_up, multiply
from workers.engine.attention import attend, remember
from workers.engine.product import CALLABLE, INNER
from workers.engine.rowwise import OPTIONS, likeliest, normalise, route, swiglu

Floats = NDArray[np.float32]


class Layers(NamedTuple):
    """All layers, stacked. The first `dense_layers` have one network each, the others experts, and a shared network where there are any.

    Matrices are panels in FP32 (`workers.engine.product.pack`), (n, panels, inputs, PANEL), or another type that `arithmetic.multiply` knows.
    """

    attention_norm: Floats  # n_layers, d_model
    qkv: Any  # n_layers
    out: Any  # n_layers
    feed_forward_norm: Floats  # n_layers, d_model
    dense_gate_up: Any  # dense_layers
    dense_down: Any
    router: Floats  # n_layers - dense_layers, n_experts, d_model
    bias: Floats  # n_layers - dense_layers, n_experts
    gate_up: Any  # (n_layers - dense_layers) · n_experts
    down: Any
    shared_gate_up: Any  # n_layers - dense_layers, or none
    shared_down: Any
    dense_layers: int
    d_dense: int  # hidden units of a dense network
    d_expert: int
    d_shared: int  # of the shared network; 0: there is none
    top_k: int
    sigmoid: bool
    eps: float


class Scratch(NamedTuple):
    """Room for `rows` tokens; `copies` = rows · max(top_k, 1) of them among experts."""

    stream: Floats  # rows, d_model
    normed: Floats  # rows, d_model
    wide: Floats  # rows, widest output
    hidden: Floats  # rows, widest input
    narrow: Floats  # copies, d_model padded
    copied: Floats  # copies, d_model
    queries: Floats  # kv_heads, rows, heads / kv_heads, head_dim
    attending: tuple[Floats, Floats]  # `attention.room_for`
    chosen: NDArray[np.int64]  # copies
    share: Floats  # copies
    place: NDArray[np.int64]  # copies: where each went among the sorted
    ends: NDArray[np.int64]  # n_experts + 1
    ranks: Floats  # 2, n_experts
    room: Any  # what `arithmetic.multiply` needs for its matrices; 0 in FP32


class Chosen(NamedTuple):
    """The next tokens of some slots, chosen by compiled code: the likeliest."""

    tokens: NDArray[np.int64]  # slots, steps; without steps none is chosen
    counts: NDArray[np.int64]  # slots: the most that are wanted, then how many there are
    ends: NDArray[np.bool_]  # vocab: after which tokens nothing comes


@njit(**OPTIONS)
def _attention(x, slots, positions, layers, number, keys, values, cos, sin, scratch):
    """`x += attention(x)`. `keys`: (slots, kv_heads, panels, width, PANEL), `values`: (slots, kv_heads, capacity, width), of this layer."""
    rows = x.shape[0]
    normalise(x, rows, layers.attention_norm[number], layers.eps, scratch.normed)
    multiply(scratch.normed, rows, layers.qkv, number, scratch.room, scratch.wide)
    # The keys of all rows are there before any row attends: a row sees those before it in its own chunk too.
    remember(scratch.wide, rows, slots, positions, keys, values, cos, sin, scratch.queries)
    attend(scratch.queries, rows, slots, positions, keys, values, scratch.attending, scratch.hidden)
    multiply(scratch.hidden, rows, layers.out, number, scratch.room, scratch.narrow)
    _add(x, scratch.narrow)


@njit(**OPTIONS)
def _add(x, y):
    """`x += y`, of which `y` may have more rows and columns."""
    for row in range(x.shape[0]):
        target, source = x[row], y[row]
        for i in range(len(target)):
            target[i] += source[i]


@njit(**OPTIONS)
def _run_network(x, rows, gate_up, down, number, hidden, scratch, into):
    """`into = network(x)`, of `hidden` units."""
    multiply(x, rows, gate_up, number, scratch.room, scratch.wide)
    swiglu(scratch.wide, rows, hidden, scratch.hidden)
    multiply(scratch.hidden, rows, down, number, scratch.room, into)


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


@njit(**OPTIONS)
def _add_experts(x, layers, number, scratch):
    """`x += Σ_k share · expert(normed)`. Rows are sorted by expert, so that each expert is one product over its own rows.

    `number`: of the layers with experts.
    """
    rows, d_model = x.shape
    experts, k = layers.router.shape[1], layers.top_k
    route(
        scratch.normed, rows, layers.router[number], layers.bias[number], k, layers.sigmoid, scratch.ranks[0], scratch.ranks[1], scratch.chosen,
        scratch.share,
    )  # fmt: skip
    _sort(scratch.chosen, rows * k, experts, scratch.ends, scratch.place)
    for copy in range(rows * k):
        _copy(scratch.normed[copy // k], scratch.copied[scratch.place[copy]])
    for expert in range(experts):
        begin = scratch.ends[expert - 1] if expert else 0
        count = scratch.ends[expert] - begin
        if count:
            _run_network(
                scratch.copied[begin:],
                count,
                layers.gate_up,
                layers.down,
                number * experts + expert,
                layers.d_expert,
                scratch,
                scratch.narrow[begin:],
            )
    for row in range(rows):  # in the order of the choice, not of the experts, as the reference adds them
        target = x[row]
        for copy in range(row * k, (row + 1) * k):
            share, said = scratch.share[copy], scratch.narrow[scratch.place[copy]]
            for i in range(d_model):
                target[i] += share * said[i]


@njit(**OPTIONS)
def _feed_forward(x, layers, number, scratch):
    """`x += feed_forward(norm(x))`."""
    normalise(x, x.shape[0], layers.feed_forward_norm[number], layers.eps, scratch.normed)
    if number < layers.dense_layers:
        _run_network(scratch.normed, x.shape[0], layers.dense_gate_up, layers.dense_down, number, layers.d_dense, scratch, scratch.narrow)
        _add(x, scratch.narrow)
        return
    mixed = number - layers.dense_layers
    _add_experts(x, layers, mixed, scratch)
    if layers.d_shared:
        _run_network(scratch.normed, x.shape[0], layers.shared_gate_up, layers.shared_down, mixed, layers.d_shared, scratch, scratch.narrow)
        _add(x, scratch.narrow)


@njit(**OPTIONS)
def _decode(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits):
    x = scratch.stream[: len(tokens)]
    for row in range(len(tokens)):
        if tokens[row] < 0:
            _copy(given[-1 - tokens[row]], x[row])
        else:
            look_up(embedding, tokens[row], x[row])
    for number in range(len(layers.attention_norm)):
        _attention(x, slots, positions, layers, number, keys[number], values[number], cos, sin, scratch)
        _feed_forward(x, layers, number, scratch)
    for i in range(len(last)):
        _copy(x[last[i]], scratch.copied[i])
    normalise(scratch.copied, len(last), norm, layers.eps, scratch.normed)
    multiply(scratch.normed, len(last), head, 0, scratch.room, logits)


@njit(**OPTIONS)
def _decode_on(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits, chosen):
    """Forward after forward, each row's likeliest token its next, until all rows have theirs. One forward only where none is to be chosen."""
    steps, rows, step = chosen.tokens.shape[1], len(tokens), 0
    while rows:
        _decode(
            tokens[:rows], slots[:rows], positions[:rows], last[:rows], given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits
        )  # fmt: skip
        going_on = 0
        for row in range(rows if steps else 0):
            token, slot = likeliest(logits[row], len(chosen.ends)), slots[row]
            chosen.tokens[slot, step] = token
            if token < 0 or chosen.ends[token] or step + 1 == chosen.counts[slot]:
                chosen.counts[slot] = step + 1
            else:  # those that end leave, and the others move up
                tokens[going_on], slots[going_on], positions[going_on] = token, slot, positions[row] + 1
                going_on += 1
        rows = going_on
        step += 1


def compile_decoder(arithmetic_name: str, *files: str) -> Any:
    """forward(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits, chosen).

    tokens, slots, positions: (rows,) int64, of which a token of -1 - n is row n of `given`, (n, d_model); last: int64, the rows whose logits are
    asked for; head: one matrix; logits: (len(last), padded), written; keys and values: `memory.KeysAndValues`. `files`: what else is compiled in.

    chosen: `Chosen`. Without steps, all of one forward. With them, forwards until each row's slot has as many tokens as are wanted, or one that
    is an end, or -1 where the logits are not finite. Then rows are of a slot each, `last` is all of them, and tokens, slots, positions are written over.
    """
    compiled_in = (__file__, arithmetic.__file__, attention.__file__, product.__file__, rowwise.__file__, *files)
    # numba's cache asks whether this file has changed, not what it imports, and knows the processor; a captured value is part of its key.
    sources = hashlib.sha256(b"".join(Path(file).read_bytes() for file in compiled_in)).hexdigest()

    def forward(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits, chosen):
        _ = sources
        _decode_on(tokens, slots, positions, last, given, layers, embedding, head, norm, keys, values, cos, sin, scratch, logits, chosen)

    forward.__qualname__ = f"{arithmetic_name}.forward"  # each has a file of its own in the cache: they may be compiled at once
    try:
        return njit(**CALLABLE, cache=True)(forward)
    except RuntimeError:  # there is no place where a cache could be written
        return njit(**CALLABLE)(forward)


forward = compile_decoder("fp32")
