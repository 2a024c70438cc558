"""What a decoder does to each row apart from products, compiled: norm, rotation, softmax, routing, activation.

Each row is computed alone, so that it is the same in any company. Compiled into whoever calls them (`fused.py`).
"""

from math import sqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from workers.engine.product import INNER, PANEL

# All of LLVM's freedom but `nnan` and `ninf`: a chosen expert's rank becomes infinite, and a damaged model's numbers must stay NaN.
FAST = {"reassoc", "contract", "nsz", "arcp"}
OPTIONS: Any = {**INNER, "fastmath": FAST}


# In 32 bits, sixteen at a time: numba's own arithmetic of whole numbers, and its `floor`, are 64 wide, half as many and with conversions between.


@intrinsic
def _floor(typing_context, x):
    del typing_context, x

    def emit(context, builder, signature, args):
        name, single = "llvm.floor.f32", ir.FloatType()
        return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(single, [single]), name), args)

    return types.float32(types.float32), emit


@intrinsic
def _power_of_two(typing_context, n):
    """2^n for whole -127 < n ≤ 127; 0 for -127."""
    del typing_context, n

    def emit(context, builder, signature, args):
        bits = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.add(builder.fptosi(args[0], bits), bits(127)), bits(23)), ir.FloatType())

    return types.float32(types.float32), emit


@njit(**OPTIONS, inline="always")
def exp(x):
    """e^x to 3e-7, 0 where that is less than any normal number: 2^n · e^r with |r| ≤ ln 2 / 2, a polynomial (Cephes, expf)."""
    x = min(max(x, np.float32(-88.0)), np.float32(88.0))
    n = _floor(x * np.float32(1.44269504) + np.float32(0.5))  # type: ignore[call-arg, var-annotated]
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1.0)) * _power_of_two(n)


@njit(**OPTIONS)
def normalise(x, rows, weight, eps, into):
    """RMSNorm of the first `rows` rows."""
    width = len(weight)
    for row in range(rows):
        source, target = x[row], into[row]
        total = np.float32(0.0)
        for i in range(width):
            total += source[i] * source[i]
        factor = np.float32(1.0 / sqrt(total / width + eps))
        for i in range(width):
            target[i] = source[i] * factor * weight[i]


@intrinsic
def to_bf16(typing_context, number):
    """The upper half of a float32's bits, rounded to the nearest, the even one of two; NaN stays NaN."""
    del typing_context, number

    def emit(context, builder, signature, args):
        bits, short = ir.IntType(32), ir.IntType(16)
        whole = builder.bitcast(args[0], bits)
        upper = builder.lshr(whole, bits(16))
        rounded = builder.lshr(builder.add(whole, builder.add(builder.and_(upper, bits(1)), bits(0x7FFF))), bits(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(is_nan, builder.or_(upper, bits(0x40)), rounded), short)

    return types.uint16(types.float32), emit


def keep(into, i, number):
    """`into[i] = number` in the type of `into`: float32, or uint16 for BF16."""
    raise NotImplementedError("this is compiled only")


@overload(keep, jit_options=OPTIONS)
def _keep_as(into, i, number):
    if into.dtype == types.float32:

        def keep(into, i, number):
            into[i] = number

    else:

        def keep(into, i, number):
            into[i] = to_bf16(number)  # type: ignore[call-arg]

    return keep


@njit(**OPTIONS)
def rotate(head, cos, sin, factor, into):
    """`into`, (width,), is one head of one row, turned, times `factor`. `cos`, `sin`: (width / 2,) of the row's position."""
    half = len(cos)
    for i in range(half):
        a, b = head[i], head[half + i]
        keep(into, i, (a * cos[i] - b * sin[i]) * factor)
        keep(into, half + i, (b * cos[i] + a * sin[i]) * factor)


@intrinsic
def _magnitude(typing_context, number):
    """The bits of a float32 without the sign, int32: they are ordered as |number| is. (A maximum of floats, which NaN spoils, LLVM leaves narrow.)"""
    del typing_context, number

    def emit(context, builder, signature, args):
        bits = ir.IntType(32)
        return builder.and_(builder.bitcast(args[0], bits), bits(0x7FFFFFFF))

    return types.int32(types.float32), emit


@intrinsic
def _order(typing_context, number):
    """An int32 that is ordered as float32 are; `_unorder` turns it back. Bits of negative ones are ordered the other way round: all but the sign is turned over."""
    del typing_context, number
    return types.int32(types.float32), lambda context, builder, signature, args: _turn(builder, builder.bitcast(args[0], ir.IntType(32)))


@intrinsic
def _unorder(typing_context, order):
    del typing_context, order
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(_turn(builder, args[0]), ir.FloatType())


def _turn(builder, bits):
    return builder.xor(bits, builder.and_(builder.ashr(bits, bits.type(31)), bits.type(0x7FFFFFFF)))


@intrinsic
def _larger(typing_context, a, b):
    del typing_context, a, b
    return types.int32(types.int32, types.int32), lambda context, builder, signature, args: _select(builder, ">", args)


@intrinsic
def _smaller(typing_context, a, b):
    del typing_context, a, b
    return types.int32(types.int32, types.int32), lambda context, builder, signature, args: _select(builder, "<", args)


def _select(builder, relation, args):
    return builder.select(builder.icmp_signed(relation, *args), *args)


@njit(**INNER)
def largest_magnitude(values, count):
    """The largest |value|; NaN where any is NaN, whose bits are larger than all others."""
    largest = np.int32(0)
    for i in range(count):
        largest = _larger(largest, _magnitude(values[i]))  # type: ignore[call-arg]
    return _unorder(largest)  # type: ignore[call-arg]


@njit(**INNER)
def _largest(values, count):
    largest = np.int32(-0x7FFFFFFF)
    for i in range(count):
        largest = _larger(largest, _order(values[i]))  # type: ignore[call-arg]
    return _unorder(largest)  # type: ignore[call-arg]


@njit(**INNER)
def likeliest(logits, count):
    """Where the largest of the first `count` is, the first where there are several; -1 where it is not finite, or any is NaN."""
    widest = largest_magnitude(logits, count)
    largest = _largest(logits, count)
    if not (widest <= np.float32(np.inf) and abs(largest) < np.float32(np.inf)):
        return -1
    first = np.int32(count)
    for i in range(count):
        first = _smaller(first, np.int32(i) if logits[i] == largest else np.int32(count))  # type: ignore[call-arg]
    return first


@njit(**OPTIONS)
def softmax(scores, seen, panels):
    """In place, of the first `seen`. The rest of so many panels becomes 0: whole panels run 16 wide throughout."""
    largest = np.float32(-np.inf)
    for panel in range(panels):
        part, there = scores[panel * PANEL : (panel + 1) * PANEL], np.float32(seen - panel * PANEL)
        for p in range(PANEL):
            part[p] = part[p] if np.float32(p) < there else np.float32(-np.inf)
        largest = max(largest, _largest(part, PANEL))
    total = np.float32(0.0)
    for panel in range(panels):
        part = scores[panel * PANEL : (panel + 1) * PANEL]
        for p in range(PANEL):
            part[p] = exp(part[p] - largest)
            total += part[p]
    inverse = np.float32(1.0) / total
    for panel in range(panels):
        part = scores[panel * PANEL : (panel + 1) * PANEL]
        for p in range(PANEL):
            part[p] *= inverse


@njit(**OPTIONS)
def route(x, rows, router, bias, k, sigmoid, scores, ranks, chosen, share):
    """The k experts of each row and their weights, which sum to 1 (`workers.moe.router`). `router`: (experts, d_model).

    `scores`, `ranks`: (experts,), room for that by which weights are given and that by which experts are chosen.
    """
    experts, d_model = router.shape
    for row in range(rows):
        source = x[row]
        for expert in range(experts):
            weight = router[expert]
            total = np.float32(0.0)
            for i in range(d_model):
                total += source[i] * weight[i]
            if sigmoid:
                scores[expert] = np.float32(1.0) / (np.float32(1.0) + exp(-total))
                ranks[expert] = scores[expert] + bias[expert]
            else:
                ranks[expert] = total + bias[expert]
        if not sigmoid:
            largest = ranks[0]
            for expert in range(1, experts):
                largest = max(largest, ranks[expert])
            for expert in range(experts):
                scores[expert] = exp(ranks[expert] - largest)
        _choose(ranks, scores, chosen[row * k : (row + 1) * k], share[row * k : (row + 1) * k])


@njit(**OPTIONS)
def _choose(ranks, scores, chosen, share):
    total = np.float32(0.0)
    for place in range(len(chosen)):
        best = 0
        for expert in range(1, len(ranks)):
            if ranks[expert] > ranks[best]:
                best = expert
        chosen[place] = best
        share[place] = scores[best]
        total += scores[best]
        ranks[best] = np.float32(-np.inf)
    for place in range(len(chosen)):
        share[place] /= total


@njit(**OPTIONS)
def swiglu(gate_up, rows, width, into):
    """`into = silu(gate) · up`. `gate_up`: (≥ rows, ≥ 2 · width), gate first."""
    for row in range(rows):
        gate, up, out = gate_up[row, :width], gate_up[row, width : 2 * width], into[row]  # indices that are sums would keep it from running 16 wide
        for i in range(width):
            out[i] = gate[i] / (np.float32(1.0) + exp(-gate[i])) * up[i]
