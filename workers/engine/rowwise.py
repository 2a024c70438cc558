"""What a decoder does to each row apart from products, compiled: norm, rotation, attention, routing, activation.

Each row is computed alone, so that it is the same in any company. Compiled into whoever calls them (`fused.py`).
"""

from math import floor, sqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# All of LLVM's freedom but `nnan` and `ninf`: a chosen expert's rank becomes infinite, and a damaged model's numbers must stay NaN.
FAST = {"reassoc", "contract", "nsz", "arcp"}
# For functions that are compiled into another: no wrappers for Python, no counting of references (nothing is allocated), no check of
# divisors: a third less to compile, and half the memory while compiling.
INNER: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}


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


@njit(**INNER, fastmath=FAST)
def attend(query, keys, values, length, scores, into):
    """One head of one row. `keys`: (width, capacity), so that scores are made many positions at a time; `values`: (capacity, width).

    Four dimensions, then four positions, together: each score and each output is loaded and stored a quarter as often.
    """
    width = len(query)
    factor = np.float32(1.0 / sqrt(width))
    for p in range(length):
        scores[p] = np.float32(0.0)
    for i in range(0, width - width % 4, 4):
        q0, q1, q2, q3 = query[i] * factor, query[i + 1] * factor, query[i + 2] * factor, query[i + 3] * factor
        k0, k1, k2, k3 = keys[i], keys[i + 1], keys[i + 2], keys[i + 3]
        for p in range(length):
            scores[p] += q0 * k0[p] + q1 * k1[p] + q2 * k2[p] + q3 * k3[p]
    for i in range(width - width % 4, width):
        q0, k0 = query[i] * factor, keys[i]
        for p in range(length):
            scores[p] += q0 * k0[p]
    largest = scores[0]
    for p in range(1, length):
        largest = max(largest, scores[p])
    total = np.float32(0.0)
    for p in range(length):
        e = exp(scores[p] - largest)
        scores[p] = e
        total += e
    _weighted_sum(scores, values, length, np.float32(1.0) / total, into)


@njit(**INNER, fastmath=FAST)
def _weighted_sum(weights, rows, count, factor, into):
    """`into = factor · Σ weights[p] · rows[p]`."""
    width = len(into)
    for i in range(width):
        into[i] = np.float32(0.0)
    for p in range(0, count - count % 4, 4):
        w0, w1, w2, w3 = weights[p], weights[p + 1], weights[p + 2], weights[p + 3]
        r0, r1, r2, r3 = rows[p], rows[p + 1], rows[p + 2], rows[p + 3]
        for i in range(width):
            into[i] += w0 * r0[i] + w1 * r1[i] + w2 * r2[i] + w3 * r3[i]
    for p in range(count - count % 4, count):
        w0, r0 = weights[p], rows[p]
        for i in range(width):
            into[i] += w0 * r0[i]
    for i in range(width):
        into[i] *= factor


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
