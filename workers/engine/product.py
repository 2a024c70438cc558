"""Products of a few rows with a matrix, in FP32, at the processor's peak: the hot loop of an answer.

A matrix lies in panels of 64 outputs, input after input, so that it is read once, in order, while up to 6 rows × 4 vectors of sums stay
in registers:

    panel[outputs / 64, inputs, 64]

Every sum is made in the order of the inputs, whatever number of rows is done together: a row's result is the same to the last bit in
any company. GFLOP/s beside NumPy and PyTorch: benchmarks/serving.py.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

LANES = 16
# For functions that are compiled into another: no wrappers for Python, no counting of references (nothing is allocated), no check of
# divisors: a third less to compile, and half the memory while compiling.
INNER: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
CALLABLE: dict[str, Any] = {**INNER, "no_cpython_wrapper": False}  # from Python too
_HAS_AVX512 = bool(llvm.get_host_cpu_features().get("avx512f"))
# 32 registers of 16 floats, or half as many of half the width: sums, one vector of weights each, and a spread input must fit.
VECTORS, MAX_ROWS = (4, 6) if _HAS_AVX512 else (2, 2)
PANEL = LANES * VECTORS
HALF = PANEL // 2
AHEAD = 8192  # bytes of weights that are fetched before they are needed: nearer and they come late, farther and they drive out what is in use


def padded(outputs: int) -> int:
    """`outputs`, rounded up to whole panels."""
    return -(-outputs // PANEL) * PANEL


def pack(weight: NDArray[Any]) -> NDArray[np.float32]:
    """(inputs, outputs) → (panels, inputs, PANEL) float32, padded with zeros."""
    inputs, outputs = weight.shape
    whole = np.zeros((inputs, padded(outputs)), np.float32)
    whole[:, :outputs] = weight
    return np.ascontiguousarray(whole.reshape(inputs, -1, PANEL).transpose(1, 0, 2))


def _tile(rows: int, at_once: int, is_short: bool) -> Any:
    """An intrinsic for `rows` rows × one panel; the sums stay in registers. `at_once`, `is_short`: see `_emit`."""

    @intrinsic
    def tile(typing_context, x, x_stride, x_scale, out, out_stride, panel, step, inputs, ahead):
        del typing_context, x, x_stride, x_scale, out, out_stride, panel, step, inputs, ahead
        return types.void(*[types.intp] * 9), lambda context, builder, signature, args: _emit(context, builder, args, rows, at_once, is_short)

    return tile


def _emit(context: Any, builder: Any, args: list[Any], rows: int, at_once: int, is_short: bool) -> Any:
    """`out[r, o] = Σ x[r, i] · panel[i, o]`. Addresses and strides in bytes, `step` from input to input; at least one input. What is so many bytes
    `ahead` of the panel is fetched meanwhile.

    `at_once` inputs are taken together, each into sums of its own, of as much less of a panel: as many sums are needed to keep both multipliers busy.
    There `x` must be 0 up to a multiple of `at_once` inputs. `is_short`: the panel is of BF16, the upper halves of FP32.
    """
    x, x_stride, _, out, out_stride, panel, step, inputs, ahead = args
    int64, single = ir.IntType(64), ir.FloatType()
    vector = ir.VectorType(single, LANES)
    undefined, first_lane = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    half = ir.VectorType(ir.IntType(16), LANES)
    vectors, vector_bytes = VECTORS // at_once, LANES * (2 if is_short else 4)
    # `fmuladd`, unlike `fma`, becomes two instructions rather than a call where the processor cannot do both at once.
    name = f"llvm.fmuladd.v{LANES}f32"
    multiply_add = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(vector, [vector] * 3), name)

    def at(base: Any, offset: Any) -> Any:
        return builder.add(base, offset if isinstance(offset, ir.Value) else int64(offset))

    def load(address: Any, kind: Any) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2 if kind is half else 4)

    def load_weights(address: Any) -> Any:
        if not is_short:
            return load(address, vector)
        whole = ir.VectorType(ir.IntType(32), LANES)
        return builder.bitcast(builder.shl(builder.zext(load(address, half), whole), ir.Constant(whole, [16] * LANES)), vector)

    x_rows = [at(x, builder.mul(x_stride, int64(r))) for r in range(rows)]
    before, body, after = builder.block, builder.append_basic_block("inputs"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    first = builder.phi(int64)
    sums = [[[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)] for _ in range(at_once)]
    following: list[list[list[Any]]] = []
    for n in range(at_once):
        i = at(first, n)
        # Of an input too many its `x` is 0; what it is multiplied with must only be there.
        there = i if not n else builder.select(builder.icmp_signed("<", i, inputs), i, first)
        w = at(panel, builder.mul(there, step))
        weights = [load_weights(at(w, vector_bytes * v)) for v in range(vectors)]
        for line in range(0, vector_bytes * vectors if rows > 1 else 0, 64):  # one row waits for its own weights
            prefetch(builder, at(at(w, ahead), line))
        following.append([])
        for r in range(rows):
            value = load(at(x_rows[r], builder.mul(i, int64(4))), single)
            spread = builder.shuffle_vector(builder.insert_element(undefined, value, ir.IntType(32)(0)), undefined, first_lane)
            following[n].append([builder.call(multiply_add, [spread, weights[v], sums[n][r][v]]) for v in range(vectors)])
    zero = ir.Constant(vector, [0.0] * LANES)
    for n in range(at_once):
        for r in range(rows):
            for v in range(vectors):
                sums[n][r][v].add_incoming(zero, before)
                sums[n][r][v].add_incoming(following[n][r][v], body)
    more = at(first, at_once)
    first.add_incoming(int64(0), before)
    first.add_incoming(more, body)
    builder.cbranch(builder.icmp_signed("<", more, inputs), body, after)

    builder.position_at_end(after)
    for r in range(rows):
        for v in range(vectors):
            total = following[0][r][v]
            for n in range(1, at_once):
                total = builder.fadd(total, following[n][r][v])
            target = at(at(out, builder.mul(out_stride, int64(r))), 4 * LANES * v)
            builder.store(total, builder.inttoptr(target, vector.as_pointer()), align=4)
    return context.get_dummy_value()


def prefetch(builder: Any, address: Any) -> None:
    """Fetch the line at `address`, which need not be there, into the nearest cache."""
    pointer, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer, whole, whole, whole]), name)
    builder.call(function, [builder.inttoptr(address, pointer), whole(0), whole(3), whole(1)])


def in_tiles(tiles: list[Any]) -> Any:
    """`multiply_panel(x, x_stride, x_scale, rows, out, out_stride, weights)`: any number of rows with one panel. Addresses and strides in bytes.

    `tiles`: for 1, 2, … 6 rows, each `tile(x, x_stride, x_scale, out, out_stride, *weights)`; `x_scale`: of a float32 for each row, where there are such.
    """
    tile_1, tile_2, tile_3, tile_4, tile_5, tile_6 = tiles
    most = MAX_ROWS

    @njit(**INNER)
    def multiply_panel(x, x_stride, x_scale, rows, out, out_stride, weights):
        row = 0
        while row < rows:
            size = rows - row
            if size > most:
                size = most if size >= 2 * most else (size + 1) >> 1  # two of about the same size at last: one of a single row would be a slow one
            a, s, b = x + row * x_stride, x_scale + row * 4, out + row * out_stride
            if size == 1:
                tile_1(a, x_stride, s, b, out_stride, *weights)
            elif size == 2:
                tile_2(a, x_stride, s, b, out_stride, *weights)
            elif size == 3:
                tile_3(a, x_stride, s, b, out_stride, *weights)
            elif size == 4:
                tile_4(a, x_stride, s, b, out_stride, *weights)
            elif size == 5:
                tile_5(a, x_stride, s, b, out_stride, *weights)
            else:
                tile_6(a, x_stride, s, b, out_stride, *weights)
            row += size

    return multiply_panel


def _multiplier(at_once: int = 1, is_short: bool = False) -> Any:
    return in_tiles([_tile(rows, at_once, is_short) for rows in range(1, 7)])


# weights: (panel, step, inputs, ahead), of which `_emit` tells; `x_scale` is not looked at.
multiply_panel, multiply_short_panel = _multiplier(), _multiplier(is_short=True)
# The same for half a panel, two inputs at once: for values that are no wider.
multiply_half, multiply_short_half = _multiplier(2), _multiplier(2, is_short=True)


@njit(**CALLABLE)
def product(x, rows, panels, out):
    """`out[:rows] = x[:rows] @ W`. `x`: (≥ rows, ≥ inputs), `panels`: as `pack` makes them, `out`: (≥ rows, ≥ padded outputs)."""
    inputs, x_stride, out_stride = panels.shape[1], x.strides[0], out.strides[0]
    for number in range(len(panels)):
        panel, to = panels.ctypes.data + number * inputs * PANEL * 4, out.ctypes.data + number * PANEL * 4
        multiply_panel(x.ctypes.data, x_stride, 0, rows, to, out_stride, (panel, PANEL * 4, inputs, AHEAD))
