"""Attention over the slots' keys and values, compiled: products of a few queries with the panels in which keys lie, and with values as they are.

Queries of one key head, and of up to so many rows of one chunk as fit a tile, go together: keys and values are read once for all of them.
Each row's result is the same whatever rows are with it: what it does not see has the weight 0.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

from workers.engine.product import HALF, MAX_ROWS, PANEL, multiply_half, multiply_panel, multiply_short_half, multiply_short_panel
from workers.engine.rowwise import OPTIONS, keep, rotate, softmax


def _multiply(kept, narrow, x, x_stride, rows, out, out_stride, weights):
    """Products with a panel of keys or values of the type of `kept`, or with half a panel."""
    raise NotImplementedError("this is compiled only")


@overload(_multiply, jit_options=OPTIONS)
def _multiply_kept(kept, narrow, x, x_stride, rows, out, out_stride, weights):
    panel, half = (multiply_panel, multiply_half) if kept.dtype == types.float32 else (multiply_short_panel, multiply_short_half)

    def multiply(kept, narrow, x, x_stride, rows, out, out_stride, weights):
        if narrow:
            half(x, x_stride, 0, rows, out, out_stride, weights)
        else:
            panel(x, x_stride, 0, rows, out, out_stride, weights)

    return multiply


@njit(**OPTIONS)
def remember(qkv, rows, slots, positions, keys, values, cos, sin, queries):
    """Rotate queries and keys of `qkv`, (≥ rows, ≥ width · (heads + 2 · kv_heads)); write queries, divided by √width, into `queries`,
    (kv_heads, ≥ rows, heads / kv_heads, width), and keys and values into their slots.

    `keys`: (slots, kv_heads, panels, width, PANEL), `values`: (slots, kv_heads, capacity, width).
    """
    kv_heads, width, group = keys.shape[1], keys.shape[3], queries.shape[2]
    heads, factor = kv_heads * group, np.float32(1.0 / np.sqrt(width))
    for row in range(rows):
        source, slot, position = qkv[row], slots[row], positions[row]
        panel, lane = position // PANEL, position % PANEL
        for head in range(kv_heads):
            for member in range(group):
                rotate(source[(head * group + member) * width :], cos[position], sin[position], factor, queries[head, row, member])
            rotate(source[(heads + head) * width :], cos[position], sin[position], np.float32(1.0), keys[slot, head, panel, :, lane])
            value, beside = source[(heads + kv_heads + head) * width :], values[slot, head, position]
            for i in range(width):
                keep(beside, i, value[i])


@njit(**OPTIONS)
def attend(queries, rows, slots, positions, keys, values, room, out):
    """`out`: (≥ rows, ≥ heads · width), written. `room`: (scores, sums), of MAX_ROWS rows each (`room_for`)."""
    kv_heads, group = queries.shape[0], queries.shape[2]
    at_once = max(1, MAX_ROWS // group)
    row = 0
    while row < rows:
        count = 1
        while count < at_once and row + count < rows and slots[row + count] == slots[row] and positions[row + count] == positions[row] + count:
            count += 1
        for head in range(kv_heads):
            for first in range(0, group, MAX_ROWS):  # more than one round only where one row has more queries than a tile has rows
                _attend(queries, row, count, slots[row], positions[row] + 1, head, first, min(group - first, MAX_ROWS), keys, values, room, out)
        row += count


@njit(**OPTIONS)
def _attend(queries, row, count, slot, length, head, first, group, keys, values, room, out):
    """`group` queries from `first` on of key head `head`, of `count` rows from `row` on, of which the first sees `length` positions, each other one
    more. More than one row only with all queries of the head."""
    scores, sums = room
    width, longest, together = keys.shape[3], length + count - 1, count * group
    panels = (longest + PANEL - 1) // PANEL
    query = queries.ctypes.data + head * queries.strides[0] + row * queries.strides[1] + first * queries.strides[2]
    # Fetched ahead: what is a head further, the next head's, or the next slot's.
    key = keys.ctypes.data + slot * keys.strides[0] + head * keys.strides[1]
    value = values.ctypes.data + slot * values.strides[0] + head * values.strides[1]
    score, stride = scores.ctypes.data, scores.strides[0]
    for panel in range(panels):
        at = key + panel * keys.strides[2], keys.strides[3], width, keys.strides[1]
        _multiply(keys, False, query, 4 * width, together, score + panel * 4 * PANEL, stride, at)
    for q in range(together):
        softmax(scores[q], length + q // group, panels)
    column = (head * queries.shape[2] + first) * width
    straight = count == 1 and width % HALF == 0
    to, to_stride = (out.ctypes.data + row * out.strides[0] + 4 * column, 4 * width) if straight else (sums.ctypes.data, sums.strides[0])
    for start in range(0, width, PANEL):
        at = value + start * values.itemsize, values.strides[2], longest, values.strides[1]
        _multiply(values, width - start <= HALF, score, stride, together, to + 4 * start, to_stride, at)
    for q in range(0 if straight else together):
        source, target = sums[q], out[row + q // group, column + (q % group) * width :]
        for i in range(width):
            target[i] = source[i]


def room_for(width: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and sums of one tile. `capacity`: positions of a slot."""
    wide = -(-width // PANEL) * PANEL
    return np.zeros((MAX_ROWS, -(-capacity // PANEL) * PANEL), np.float32), np.zeros((MAX_ROWS, wide), np.float32)
