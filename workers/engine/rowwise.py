"""What a decoder does to each row apart from products, compiled: norm, rotation, softmax, routing, activation.

Each row is computed alone, so that it is the same in any company. Compiled into whoever calls them (`fused.py`).
"""

from math import floor, sqrt

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from workers.engine.product import INNER

# All of LLVM's freedom but `nnan` and `ninf`: a chosen expert's rank becomes infinite, and a damaged model's numbers must stay NaN.
FAST = {"reassoc", "contract", "nsz", "arcp"}


@intrinsic
def _as_float(typing_context, bits):
    """The float32 whose bits these are."""
    del typing_context, bits
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(args[0], ir.FloatType())


@njit(**INNER, fastmath=FAST, inline="always")
def exp(x):
    """e^x to 3e-7, in code that runs sixteen at a time: 2^n · e^r with |r| ≤ ln 2 / 2, a polynomial (Cephes, expf)."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.float32(floor(x * np.float32(1.44269504) + np.float32(0.5)))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1.0)) * _as_float((np.int32(n) + np.int32(127)) << np.int32(23))  # type: ignore[call-arg]


@njit(**INNER, fastmath=FAST)
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


@njit(**INNER, fastmath=FAST)
def rotate(heads, cos, sin, count, width):
    """Turn the first `count` heads of one row in place. `cos`, `sin`: (width / 2,) of the row's position."""
    half = width // 2
    for head in range(count):
        first, second = heads[head * width : head * width + half], heads[head * width + half : (head + 1) * width]
        for i in range(half):
            a, b = first[i], second[i]
            first[i] = a * cos[i] - b * sin[i]
            second[i] = b * cos[i] + a * sin[i]


@intrinsic
def _as_bits(typing_context, number):
    """The bits of a float32."""
    del typing_context, number
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(args[0], ir.IntType(32))


@njit(**INNER)
def largest_magnitude(values, count):
    """The largest |value|. Whole numbers, which bits without the sign are ordered as: LLVM keeps a maximum of floats, which NaN spoils, from running wide."""
    largest = np.int32(0)
    for i in range(count):
        largest = max(largest, _as_bits(values[i]) & np.int32(0x7FFFFFFF))  # type: ignore[call-arg]
    return _as_float(largest)  # type: ignore[call-arg]


@njit(**INNER)
def _largest(values, count):
    """The largest value. Negative ones are ordered the other way round by their bits, until all but the sign are turned over."""
    largest = np.int32(-0x7FFFFFFF)
    for i in range(count):
        bits = _as_bits(values[i])  # type: ignore[call-arg, var-annotated]
        largest = max(largest, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return _as_float(largest ^ ((largest >> np.int32(31)) & np.int32(0x7FFFFFFF)))  # type: ignore[call-arg]


@njit(**INNER)
def likeliest(logits, count):
    """Where the largest of the first `count` is, the first where there are several; -1 where it is not finite, or any is NaN."""
    widest = largest_magnitude(logits, count)  # of all floats NaN has the largest bits, whatever its sign
    largest = _largest(logits, count)
    if not (widest <= np.float32(np.inf) and abs(largest) < np.float32(np.inf)):
        return -1
    first = np.int32(count)
    for i in range(count):
        first = min(first, np.int32(i) if logits[i] == largest else np.int32(count))
    return first


@njit(**INNER, fastmath=FAST)
def softmax(scores, length):
    """In place, but for the division: 1 / Σ is returned."""
    largest = _largest(scores, length)
    total = np.float32(0.0)
    for p in range(length):
        e = exp(scores[p] - largest)
        scores[p] = e
        total += e
    return np.float32(1.0) / total


@njit(**INNER, fastmath=FAST)
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


@njit(**INNER, fastmath=FAST)
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


@njit(**INNER, fastmath=FAST)
def swiglu(gate_up, rows, width, into):
    """`into = silu(gate) · up`. `gate_up`: (≥ rows, ≥ 2 · width), gate first."""
    for row in range(rows):
        gate, up, out = gate_up[row, :width], gate_up[row, width : 2 * width], into[row]  # indices that are sums would keep it from running 16 wide
        for i in range(width):
            out[i] = gate[i] / (np.float32(1.0) + exp(-gate[i])) * up[i]
