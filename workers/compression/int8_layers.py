"""The decoder's matrices as INT8 (`workers.engine.arithmetic`): importing this lets `workers.engine.fused` be compiled for them.

Each matrix sees its rows rounded to 8 bits, each row with a scale of its own (dynamic quantization). All else is the FP32 decoder's.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from workers.compression import int8_product
from workers.compression.int8_product import QUAD, SHIFT, product
from workers.engine.arithmetic import look_up, multiply
from workers.engine.fused import compile_decoder
from workers.engine.rowwise import OPTIONS, largest_magnitude


class Matrices(NamedTuple):
    """`n` matrices of one shape, packed for `product`. `weight`: (n, bytes) int8, `scale` and `offset`: (n, padded outputs)."""

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    offset: NDArray[np.int32]
    inputs: int  # not padded


class Room(NamedTuple):
    """Rows rounded to 8 bits, and their scales. Padding of the inputs stays what it is: its weights are 0."""

    rounded: NDArray[np.uint8]  # rows, widest input
    scale: NDArray[np.float32]  # rows


@njit(**OPTIONS)
def quantize_rows(x, rows, width, into, scale):
    """Round each row to 8 bits about zero: `x ≈ (into − 128) · scale`. A row with a NaN has the scale NaN."""
    for row in range(rows):
        source, target = x[row], into[row]
        step = largest_magnitude(source, width) / np.float32(127.0)
        inverse = np.float32(0.0) if step < np.float32(1e-30) else np.float32(1.0) / step
        scale[row] = step
        for i in range(width):
            target[i] = np.uint8(np.int32(source[i] * inverse + np.float32(SHIFT + 0.5)))


@overload(multiply, jit_options=OPTIONS)
def _multiply_int8(x, rows, matrices, number, room, out):
    if getattr(matrices, "instance_class", None) is not Matrices:
        return None

    def multiply_int8(x, rows, matrices, number, room, out):
        quantize_rows(x, rows, matrices.inputs, room.rounded, room.scale)
        padded = (matrices.inputs + QUAD - 1) // QUAD * QUAD
        product(room.rounded, room.scale, rows, matrices.weight[number], matrices.scale[number], matrices.offset[number], padded, out)

    return multiply_int8


@overload(look_up, jit_options=OPTIONS)
def _look_up_int8(embedding, token, into):
    if not isinstance(embedding, types.NamedTuple) or embedding.instance_class is not Matrices:
        return None

    def look_up_int8(embedding, token, into):
        weight, scale = embedding.weight[0], embedding.scale[0, token]
        quads = (embedding.inputs + QUAD - 1) // QUAD
        start = (token // 64) * quads * 256 + (token % 64) * QUAD  # of 64 outputs × 4 inputs, 256 bytes
        for i in range(len(into)):
            into[i] = np.float32(weight[start + (i // QUAD) * 256 + i % QUAD]) * scale

    return look_up_int8


forward = compile_decoder("int8", __file__, int8_product.__file__)
