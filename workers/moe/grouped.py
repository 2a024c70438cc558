"""Products of rows, sorted by group, with one matrix for each group; and the way into that order and back.

Hand-written backward passes: plain indexing would scatter gradients with atomic additions, which are neither quick nor
reproducible with more than one thread, and a loop under autograd keeps one node for each expert.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class Dispatch(Function):
    """`x[rows]`: one copy of a token for each expert that sees it. `inverse`: (tokens, k), where the copies of each token went."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        return _gather_sum(grad, inverse), None, None


class Combine(Function):
    """`Σ_k weights[t, k] · y[inverse[t, k]]`: what the experts of a token say, weighted. The inverse of `Dispatch`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        weighted = y * weights.reshape(-1).index_select(0, order).unsqueeze(1).to(y.dtype)
        ctx.save_for_backward(y, weights, order)
        return _gather_sum(weighted, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        y, weights, order = ctx.saved_tensors
        k = weights.shape[1]
        spread = grad.index_select(0, order // k)
        grad_y = spread * weights.reshape(-1).index_select(0, order).unsqueeze(1).to(grad.dtype)
        grad_weights = torch.zeros(weights.numel(), dtype=weights.dtype, device=weights.device)
        grad_weights[order] = (spread.to(y.dtype) * y).sum(1).to(weights.dtype)
        return grad_y, grad_weights.view_as(weights), None, None


def _gather_sum(rows: Tensor, inverse: Tensor) -> Tensor:
    """`Σ_k rows[inverse[t, k]]`, with an `inverse` of -1 for a token that went nowhere."""
    tokens, k = inverse.shape
    taken = rows.index_select(0, inverse.clamp(min=0).reshape(-1)).view(tokens, k, -1)
    total = taken[:, 0] if k == 1 else taken.sum(1)
    nowhere = inverse[:, 0] < 0
    return total.masked_fill(nowhere.unsqueeze(1), 0) if bool(nowhere.any()) else total


class GroupedProduct(Function):
    """`x[a:b] @ matrices[g]` for each group's rows a:b. `x`: (rows, i), `matrices`: (groups, i, o), `counts`: rows of each group.

    A group without rows has a zero gradient, not a missing one: a sharded run waits for the gradients of all.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, matrices)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], matrices.shape[2])
        for rows, matrix, into in zip(x.split(counts), matrices.unbind(), out.split(counts), strict=True):
            if len(rows):
                torch.mm(rows, matrix, out=into)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, matrices = ctx.saved_tensors
        grad_x, grad_matrices = torch.empty_like(x), torch.empty_like(matrices)
        parts = zip(
            x.split(ctx.counts), matrices.unbind(), grad.split(ctx.counts), grad_x.split(ctx.counts), grad_matrices.unbind(), strict=True
        )  # fmt: skip
        for rows, matrix, above, into_x, into_matrix in parts:
            if len(rows):
                torch.mm(above, matrix.T, out=into_x)
                torch.mm(rows.T, above, out=into_matrix)
            else:
                into_matrix.zero_()
        return grad_x, grad_matrices, None


def grouped_product(x: Tensor, matrices: Tensor, counts: list[int]) -> Tensor:
    """`GroupedProduct` in autocast's type, where autocast is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, matrices = x.to(dtype), matrices.to(dtype)
    return GroupedProduct.apply(x, matrices, counts)
