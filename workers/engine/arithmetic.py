"""What the decoder does with a model's matrices, whatever numbers they hold: FP32 here, INT8 in `workers.compression.int8_layers`.

`fused.py` is written once, in terms of these two. Which code they become follows from the type of the matrices, when the decoder is compiled.
"""

from numba import types
from numba.extending import overload

from workers.engine.product import product
from workers.engine.rowwise import OPTIONS


def multiply(x, rows, matrices, number, room, out):
    """`out[:rows] = x[:rows] @ W` for matrix `number` of `matrices`, which are of one shape. `room`: what such matrices need beside it."""
    raise NotImplementedError("this is compiled only")


def look_up(embedding, token, into):
    """`into = embedding[token]`, (d_model,)."""
    raise NotImplementedError("this is compiled only")


@overload(multiply, jit_options=OPTIONS)
def _multiply_panels(x, rows, matrices, number, room, out):
    """FP32: `matrices` (n, panels, inputs, PANEL)."""
    if not isinstance(matrices, types.Array):
        return None

    def multiply_fp32(x, rows, matrices, number, room, out):
        product(x, rows, matrices[number], out)

    return multiply_fp32


@overload(look_up, jit_options=OPTIONS)
def _look_up_row(embedding, token, into):
    """FP32: `embedding` (vocab, d_model)."""
    if not isinstance(embedding, types.Array):
        return None

    def look_up_fp32(embedding, token, into):
        source = embedding[token]
        for i in range(len(into)):
            into[i] = source[i]

    return look_up_fp32
