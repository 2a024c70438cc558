"""Products of rows, sorted by group, with one matrix for each group; and the way into that order and back.

Hand-written backward passes: plain indexing would scatter gradients with atomic additions, which are neither quick nor
reproducible with more than one thread, and a loop under autograd keeps one node for each expert.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class Places:
    """Where each copy of a token stands when they are sorted by expert. A copy is token · k + slot, one for each expert it sees.

    `copies`: (rows,), the copy in each row; tokens · k in a row that only fills up its expert's part. `tokens`: (rows,), its token
    (any, for filling). `rows`: (tokens, k), the row of each copy, -1 for a token that goes nowhere. `counts`: rows of each expert.
    """

    copies: Tensor
    tokens: Tensor
    rows: Tensor
    counts: list[int]

    @classmethod
    def of(cls, ids: Tensor, n_experts: int, step: int) -> "Places":
        """`ids`: (tokens, k), n_experts for a token that goes nowhere. Each expert's rows are filled up to a multiple of `step`."""
        n_tokens, k = ids.shape
        flat = ids.reshape(-1)
        used = torch.bincount(flat, minlength=n_experts)[:n_experts]
        counts = (used + step - 1) // step * step
        sizes = torch.stack([used, counts]).tolist()
        order = flat.argsort(stable=True)[: sum(sizes[0])]
        rows = torch.full_like(flat, -1)
        if step == 1:
            copies = order
            rows[order] = torch.arange(len(order), device=flat.device)
        else:
            before = (counts - used).cumsum(0) - (counts - used)  # filling rows before each expert's part
            at = torch.arange(len(order), device=flat.device) + before[flat[order]]
            copies = torch.full((sum(sizes[1]),), n_tokens * k, device=flat.device)
            copies[at] = order
            rows[order] = at
        return cls(copies, (copies // k).clamp_(max=n_tokens - 1), rows.view_as(ids), sizes[1])


class Dispatch(Function):
    """One row for each expert that sees a token. `x`: (tokens, d_model) → (rows, d_model)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return x.index_select(0, places.tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather_sum(grad, ctx.places.rows), None


class Combine(Function):
    """What the experts of a token say, weighted: `Σ_k weights[t, k] · y[rows[t, k]]`. The inverse of `Dispatch`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, places: Places) -> Tensor:
        by_row = _by_row(weights, places)
        ctx.save_for_backward(y, weights, by_row)
        ctx.places = places
        return _gather_sum(y * by_row.to(y.dtype), places.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        y, weights, by_row = ctx.saved_tensors
        spread = grad.index_select(0, ctx.places.tokens)
        grad_weights = torch.zeros(weights.numel() + 1, dtype=weights.dtype, device=weights.device)
        grad_weights[ctx.places.copies] = (spread.to(y.dtype) * y).sum(1).to(weights.dtype)
        return spread * by_row.to(grad.dtype), grad_weights[:-1].view_as(weights), None


class Collect(Function):
    """The way back of `Dispatch` where each token was in one row only, or in none: `y[rows[t]]`. (rows, d_model) → (tokens, d_model)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return _gather_sum(y, places.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        copies = ctx.places.copies
        spread = grad.index_select(0, ctx.places.tokens)
        return spread.masked_fill_((copies == ctx.places.rows.numel()).unsqueeze(1), 0), None  # rows that only fill up


def _by_row(weights: Tensor, places: Places) -> Tensor:
    """(rows, 1): the weight of the copy in each row, 0 where it only fills up."""
    return F.pad(weights.reshape(-1), (0, 1)).index_select(0, places.copies).unsqueeze(1)


def _gather_sum(values: Tensor, rows: Tensor) -> Tensor:
    """`Σ_k values[rows[t, k]]`, zero for a token that went nowhere."""
    tokens, k = rows.shape
    taken = values.index_select(0, rows.clamp(min=0).reshape(-1)).view(tokens, k, values.shape[1])
    total = taken[:, 0] if k == 1 else taken.sum(1)
    nowhere = rows[:, 0] < 0
    return total.masked_fill(nowhere.unsqueeze(1), 0) if bool(nowhere.any()) else total


class GroupedProduct(Function):
    """`x[a:b] @ matrices[g]` for each group's rows a:b. `x`: (rows, i), `matrices`: (groups, i, o), `counts`: rows of each group.

    A group without rows has a zero gradient, not a missing one: a sharded run waits for the gradients of all. Frozen matrices have
    none, and for them `x` is not kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, counts: list[int]) -> Tensor:
        x_learns, matrices_learn, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if matrices_learn else None, matrices if x_learns else None)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], matrices.shape[2])
        for rows, matrix, into in zip(x.split(counts), matrices.unbind(), out.split(counts), strict=True):
            if len(rows):
                torch.mm(rows, matrix, out=into)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, matrices = ctx.saved_tensors
        grad_x = grad_matrices = None
        above = grad.split(ctx.counts)
        if matrices is not None:
            grad_x = grad.new_empty(grad.shape[0], matrices.shape[1])
            for matrix, part, into in zip(matrices.unbind(), above, grad_x.split(ctx.counts), strict=True):
                if len(part):
                    torch.mm(part, matrix.T, out=into)
        if x is not None:
            grad_matrices = grad.new_empty(len(ctx.counts), x.shape[1], grad.shape[1])
            for rows, part, into in zip(x.split(ctx.counts), above, grad_matrices.unbind(), strict=True):
                torch.mm(rows.T, part, out=into)  # of no rows: zeros
        return grad_x, grad_matrices, None


def grouped_product(x: Tensor, matrices: Tensor, counts: list[int]) -> Tensor:
    """`GroupedProduct` in autocast's type, where autocast is on."""
    if torch.is_autocast_enabled(x.device.type):
        x, matrices = x.to(working_type(x)), matrices.to(working_type(x))
    return GroupedProduct.apply(x, matrices, counts)


def working_type(x: Tensor) -> torch.dtype:
    """The type of products with `x`: autocast's, where autocast is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
