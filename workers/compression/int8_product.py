"""Products of INT8 activations with INT8 weights, the one hot loop of an INT8 model.

`vpdpbusd` (AVX-512 VNNI) multiplies four unsigned by four signed bytes and adds them to a 32-bit sum, sixteen sums at a time. So weights
lie in blocks of 16 outputs × 4 inputs, 64 bytes, one register; four blocks, a panel of 64 outputs, are read together, and a panel in order:

    weight[panel, quad, block, output, input]       panel: 4 blocks, block: 16 outputs, quad: 4 inputs

Activations are shifted by 128 to be unsigned, which adds 128 · Σ weights to each sum: the sums begin at that, negated (`offset`).
On other processors LLVM is given the same sums in general terms and makes the best of what there is: `KERNEL` says which.

Sums are exact: 127 · 255 · inputs fits 32 bits up to 66,000 inputs.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numpy.typing import NDArray

from workers.engine.product import AHEAD, CALLABLE, in_tiles, prefetch

intrinsic: Any = extending.intrinsic  # its own type hides that the typing context is not passed by who calls it

LANES = 16  # outputs of a block
QUAD = 4  # inputs of a block
TILE_BLOCKS = 4  # blocks of a panel, so that an activation is read once for all
OUTPUTS = LANES * TILE_BLOCKS  # outputs are padded to a multiple of this
SHIFT = 128

HAS_VNNI = bool(llvm.get_host_cpu_features().get("avx512vnni"))
KERNEL = "AVX-512 VNNI" if HAS_VNNI else "portable"


def pack(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """(outputs, inputs) int8 → (panels, quads, 4, 16, 4), padded with zeros."""
    outputs, inputs = weight.shape
    padded = np.zeros((-(-outputs // OUTPUTS) * OUTPUTS, -(-inputs // QUAD) * QUAD), np.int8)
    padded[:outputs, :inputs] = weight
    return np.ascontiguousarray(padded.reshape(-1, TILE_BLOCKS, LANES, padded.shape[1] // QUAD, QUAD).transpose(0, 3, 1, 2, 4))


def _tile(rows: int, vnni: bool) -> Any:
    """An intrinsic for `rows` rows × TILE_BLOCKS blocks; the sums stay in registers."""

    @intrinsic
    def tile(typing_context, x, x_stride, x_scale, out, out_stride, panel, scale, offset, quads):
        del typing_context, x, x_stride, x_scale, out, out_stride, panel, scale, offset, quads
        return types.void(*[types.intp] * 9), lambda context, builder, signature, args: _emit(context, builder, args, rows, vnni)

    return tile


def _emit(context: Any, builder: Any, args: list[Any], rows: int, vnni: bool) -> Any:
    """`out[r, o] = x_scale[r] · scale[o] · (offset[o] + Σ x[r] · weight[o])`. Addresses and strides in bytes."""
    x, x_stride, x_scale, out, out_stride, panel, scale, offset, quads = args
    int32, int64, single = ir.IntType(32), ir.IntType(64), ir.FloatType()
    sums_type, bytes_type, floats_type = ir.VectorType(int32, LANES), ir.VectorType(ir.IntType(8), 64), ir.VectorType(single, LANES)

    def at(base: Any, *steps: Any) -> Any:
        for step in steps:
            base = builder.add(base, step if isinstance(step, ir.Value) else int64(step))
        return base

    def load(address: Any, kind: Any, align: int) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)

    def spread(value: Any, kind: Any) -> Any:
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, int32(0))
        return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(sums_type, [0] * LANES))

    x_rows = [at(x, builder.mul(x_stride, int64(r))) for r in range(rows)]
    starts = [load(at(offset, b * LANES * 4), sums_type, 4) for b in range(TILE_BLOCKS)]

    before, body, after = builder.block, builder.append_basic_block("quads"), builder.append_basic_block("scaled")
    builder.branch(body)
    builder.position_at_end(body)
    quad = builder.phi(int64)
    quad.add_incoming(int64(0), before)
    sums = [[builder.phi(sums_type) for _ in range(TILE_BLOCKS)] for _ in range(rows)]
    inputs = builder.mul(quad, int64(QUAD))
    four_blocks = at(panel, builder.mul(quad, int64(64 * TILE_BLOCKS)))
    weights = [load(at(four_blocks, 64 * b), bytes_type, 1) for b in range(TILE_BLOCKS)]
    for b in range(TILE_BLOCKS if rows > 1 else 0):
        prefetch(builder, at(four_blocks, AHEAD + 64 * b))
    following = []
    for r in range(rows):
        four = builder.bitcast(spread(load(at(x_rows[r], inputs), int32, 1), sums_type), bytes_type)
        following.append([_add_products(builder, sums[r][b], four, weights[b], vnni) for b in range(TILE_BLOCKS)])
    for r in range(rows):
        for b in range(TILE_BLOCKS):
            sums[r][b].add_incoming(starts[b], before)
            sums[r][b].add_incoming(following[r][b], body)
    more = builder.add(quad, int64(1))
    quad.add_incoming(more, body)
    builder.cbranch(builder.icmp_signed("<", more, quads), body, after)

    builder.position_at_end(after)
    for r in range(rows):
        row_scale = spread(load(at(x_scale, r * 4), single, 4), floats_type)
        for b in range(TILE_BLOCKS):
            scales = builder.fmul(row_scale, load(at(scale, b * LANES * 4), floats_type, 4))
            value = builder.fmul(builder.sitofp(following[r][b], floats_type), scales)
            target = at(out, builder.mul(out_stride, int64(r)), b * LANES * 4)
            builder.store(value, builder.inttoptr(target, floats_type.as_pointer()), align=4)
    return context.get_dummy_value()


def _add_products(builder: Any, sums: Any, unsigned: Any, signed: Any, vnni: bool) -> Any:
    """`sums[i] + Σ_j unsigned[4 i + j] · signed[4 i + j]`."""
    if vnni:
        return builder.call(
            _declare(builder, "llvm.x86.avx512.vpdpbusd.512", sums.type, [sums.type, unsigned.type, signed.type]), [sums, unsigned, signed]
        )
    wide = ir.VectorType(ir.IntType(32), 64)
    products = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    return builder.add(sums, _add_neighbours(builder, _add_neighbours(builder, products)))


def _add_neighbours(builder: Any, values: Any) -> Any:
    """Half as many sums of two values each. Of products of short numbers LLVM knows it as one instruction (`vpmaddwd`)."""
    half = ir.VectorType(ir.IntType(32), values.type.count // 2)
    undefined = ir.Constant(values.type, ir.Undefined)
    even, odd = (builder.shuffle_vector(values, undefined, ir.Constant(half, list(range(start, values.type.count, 2)))) for start in (0, 1))
    return builder.add(even, odd)


def _declare(builder: Any, name: str, returned: Any, taken: list[Any]) -> Any:
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(returned, taken), name)


def compile_product(vnni: bool) -> Any:
    """`product(x, x_scale, rows, weight, scale, offset, inputs, out)`, compiled on its first call.

    `x`: (≥ rows, ≥ inputs) uint8, shifted by SHIFT; `x_scale`: (≥ rows,) float32; `weight`: packed, flat; `scale`: (outputs,) float32 and
    `offset`: (outputs,) int32, outputs padded; `inputs`: padded; `out`: (≥ rows, ≥ outputs) float32, written.
    """
    multiply_panel = in_tiles([_tile(rows, vnni) for rows in range(1, 7)])

    @njit(**CALLABLE)
    def product(x, x_scale, rows, weight, scale, offset, inputs, out):
        stride, out_stride, panel_bytes = x.strides[0], out.strides[0], inputs * OUTPUTS
        for number in range(len(scale) // OUTPUTS):
            outputs = number * OUTPUTS * 4
            panel = weight.ctypes.data + number * panel_bytes, scale.ctypes.data + outputs, offset.ctypes.data + outputs, inputs // QUAD
            multiply_panel(x.ctypes.data, stride, x_scale.ctypes.data, rows, out.ctypes.data + outputs, out_stride, panel)

    return product


product = compile_product(HAS_VNNI)
