"""Attention over the slots' keys and values, compiled: products of a few queries with the panels in which keys lie, and with values as they are.

Queries of one key head, and of up to so many rows of one chunk as fit a tile, go together: keys and values are read once for all of them.
Each row's result is the same whatever rows are with it: what it does not see has the weight 0.
"""

import numpy as np
from numba import njit

from workers.engine.product import INNER, MAX_ROWS, PANEL, multiply_panel
from workers.engine.rowwise import FAST, rotate, softmax


@njit(**INNER, fastmath=FAST)
def remember(qkv, rows, slots, positions, heads, keys, values, cos, sin):
    """Rotate queries and keys of `qkv`, (≥ rows, ≥ width · (heads + 2 · kv_heads)), in place, and write keys and values into their slots.

    `keys`: (slots, kv_heads, panels, width, PANEL), `values`: (slots, kv_heads, capacity, width).
    """
    kv_heads, width = keys.shape[1], keys.shape[3]
    for row in range(rows):
        source, slot, position = qkv[row], slots[row], positions[row]
        rotate(source, cos[position], sin[position], heads + kv_heads, width)
        panel, lane = position // PANEL, position % PANEL
        for head in range(kv_heads):
            key, value = (heads + head) * width, (heads + kv_heads + head) * width
            into, beside = keys[slot, head, panel], values[slot, head, position]
            for i in range(width):
                into[i, lane] = source[key + i]
            for i in range(width):
                beside[i] = source[value + i]


@njit(**INNER, fastmath=FAST)
def attend(qkv, rows, slots, positions, heads, keys, values, room, out):
    """`out`: (≥ rows, ≥ heads · width), written. `room`: (queries, scores, sums), of MAX_ROWS rows each (`room_for`)."""
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    at_once = max(1, MAX_ROWS // group)
    row = 0
    while row < rows:
        count = 1
        while count < at_once and row + count < rows and slots[row + count] == slots[row] and positions[row + count] == positions[row] + count:
            count += 1
        for head in range(kv_heads):
            for first in range(0, group, MAX_ROWS):  # more than one round only where one row has more queries than a tile has rows
                _attend(
                    qkv,
                    row,
                    count,
                    positions[row] + 1,
                    head * group + first,
                    min(group - first, MAX_ROWS),
                    keys[slots[row], head],
                    values[slots[row], head],
                    room,
                    out,
                )
        row += count


@njit(**INNER, fastmath=FAST)
def _attend(qkv, row, count, length, head, group, keys, values, room, out):
    """`group` heads from `head` on, of `count` rows from `row` on, of which the first sees `length` positions, each other one more."""
    queries, scores, sums = room
    width, longest, together = keys.shape[1], length + count - 1, count * group
    factor = np.float32(1.0 / np.sqrt(width))
    for q in range(together):
        source, target = qkv[row + q // group, (head + q % group) * width : (head + q % group + 1) * width], queries[q]
        for i in range(width):
            target[i] = source[i] * factor
    for panel in range((longest + PANEL - 1) // PANEL):
        multiply_panel(
            queries.ctypes.data, queries.strides[0], 0, together, scores.ctypes.data + panel * 4 * PANEL, scores.strides[0],
            (keys.ctypes.data + panel * keys.strides[0], 4 * PANEL, width),
        )  # fmt: skip
    for q in range(together):
        seen, weights = length + q // group, scores[q]
        inverse = softmax(weights, seen)
        for p in range(seen):
            weights[p] *= inverse
        for p in range(seen, longest):
            weights[p] = np.float32(0.0)
    for start in range(0, width, PANEL):
        multiply_panel(
            scores.ctypes.data, scores.strides[0], 0, together, sums.ctypes.data + 4 * start, sums.strides[0],
            (values.ctypes.data + 4 * start, 4 * width, longest),
        )  # fmt: skip
    for q in range(together):
        source, target = sums[q], out[row + q // group, (head + q % group) * width : (head + q % group + 1) * width]
        for i in range(width):
            target[i] = source[i]


def room_for(width: int, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, scores and sums of one tile. `capacity`: positions of a slot."""
    wide = -(-width // PANEL) * PANEL
    return (
        np.zeros((MAX_ROWS, wide), np.float32),
        np.zeros((MAX_ROWS, -(-capacity // PANEL) * PANEL), np.float32),
        np.zeros((MAX_ROWS, wide), np.float32),
    )
