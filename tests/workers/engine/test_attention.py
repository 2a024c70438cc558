"""Compiled attention beside the formula, softmax(q · kᵀ / √width) · v over the positions that a row sees."""

import ml_dtypes
import numpy as np
import pytest
from numba import njit

from workers.engine.attention import attend, remember, room_for
from workers.engine.product import CALLABLE, PANEL

CAPACITY = 2 * PANEL + 9


@njit(**CALLABLE)
def run(qkv, slots, positions, keys, values, cos, sin, queries, room, out):
    remember(qkv, len(slots), slots, positions, keys, values, cos, sin, queries)
    attend(queries, len(slots), slots, positions, keys, values, room, out)


@pytest.mark.parametrize("length", [1, 2, PANEL, PANEL + 1, CAPACITY])
@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize(("width", "group"), [(2, 1), (16, 3), (32, 2), (48, 4), (64, 8), (80, 1)])
def test_a_row_is_the_mean_of_the_values_it_sees_weighted_by_their_keys(width, group, length, is_short):
    """Of FP32, and of BF16. What was never written, which is no number here, is never looked at."""
    draw, kv_heads = np.random.default_rng(width + length), 2
    keys, values = (np.full((2, kv_heads, *shape), np.nan, np.float32) for shape in ((-(-CAPACITY // PANEL), width, PANEL), (CAPACITY, width)))
    if is_short:
        keys, values = (np.full(array.shape, 0x7FC0, np.uint16) for array in (keys, values))  # not a number either
    qkv = draw.normal(0, 2, (length, (group + 2) * kv_heads * width)).astype(np.float32)
    cos, sin = np.ones((CAPACITY, width // 2), np.float32), np.zeros((CAPACITY, width // 2), np.float32)
    queries = np.zeros((kv_heads, length, group, width), np.float32)
    out = np.zeros((length, group * kv_heads * width), np.float32)
    run(qkv, np.ones(length, np.int64), np.arange(length), keys, values, cos, sin, queries, room_for(width, CAPACITY), out)

    q, k, v = np.split(qkv.reshape(length, -1, width).transpose(1, 0, 2).astype(np.float64), [group * kv_heads, (group + 1) * kv_heads])
    if is_short:
        k, v = (array.astype(ml_dtypes.bfloat16).astype(np.float64) for array in (k, v))
    scores = q @ np.repeat(k, group, 0).transpose(0, 2, 1) / np.sqrt(width)
    weights = np.where(np.tri(length, dtype=bool), np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    expected = weights / weights.sum(-1, keepdims=True) @ np.repeat(v, group, 0)
    np.testing.assert_allclose(out, expected.transpose(1, 0, 2).reshape(length, -1), atol=3e-5)
