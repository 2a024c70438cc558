"""Attention a block of queries at a time: where PyTorch's own kernels cannot be used (sinks), or would need a mask of all pairs (windows).

The scores of all pairs take T² numbers a head, several times over, forward and backward. Here only those of one block of queries exist
at a time, and the backward pass makes them again from the log-sum of each row (FlashAttention, Dao et al. 2022, without its tiles over
keys: a row's softmax is whole). So memory grows with T · BLOCK, and keys before a window are not even multiplied.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries: fewer make the products small, more take memory (benchmarks/attention.py)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, scale: float, sinks: Tensor | None) -> Tensor:
    """`q`: (B, H, T, w), `k`: (B, KV, S, w), `v`: (B, KV, S, v) → (B, H, T, v). The queries are the last T of S tokens.

    `mask`: (B or 1, 1, T, S) bool, True where a query sees a key; None: causal. `window`: tokens that a query sees, itself included;
    0 for all. `sinks`: (H,), a logit of each head that takes its share of the softmax and has no value.
    """
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    # The queries of one key head stand together: B, KV, H / KV, T, w.
    out = _InBlocks.apply(q.reshape(batch, groups, heads // groups, length, width), k, v, mask, window, scale, sinks)
    return out.reshape(batch, heads, length, -1)


class _InBlocks(Function):
    """`q`: (B, KV, H / KV, T, w) → (B, KV, H / KV, T, v); the rest as `attend_in_blocks`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, scale: float, sinks: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        log_sums = torch.empty(q.shape[:-1], device=q.device)
        for queries, keys in _reach(q.shape[3], k.shape[2], mask, window):
            scores = _scores(q, k, queries, keys, mask, window, scale)
            log_sum = scores.logsumexp(-1)
            if sinks is not None:
                log_sum = torch.logaddexp(log_sum, _by_group(sinks, q))
            weights = scores.sub_(log_sum.unsqueeze(-1)).exp_().to(v.dtype)
            log_sums[..., queries] = log_sum
            out[..., queries, :] = (weights.flatten(2, 3) @ v[:, :, keys]).view(*weights.shape[:-1], -1)
        ctx.save_for_backward(q, k, v, mask, sinks, out, log_sums)
        ctx.window, ctx.scale = window, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, sinks, out, log_sums = ctx.saved_tensors
        # Of keys and values many blocks' gradients are added up: in FP32, whatever they are in.
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        spread = (grad.float() * out.float()).sum(-1)  # what each row's weights have in common (Dao et al. 2022, eq. 4)
        for queries, keys in _reach(q.shape[3], k.shape[2], mask, ctx.window):
            scores = _scores(q, k, queries, keys, mask, ctx.window, ctx.scale)
            weights = scores.sub_(log_sums[..., queries].unsqueeze(-1)).exp_()
            above = grad[..., queries, :].flatten(2, 3)
            grad_v[:, :, keys] += weights.flatten(2, 3).to(grad.dtype).mT @ above
            by_score = (above @ v[:, :, keys].mT).view(weights.shape).float().sub_(spread[..., queries].unsqueeze(-1)).mul_(weights)
            flat = by_score.flatten(2, 3).to(q.dtype)
            grad_q[..., queries, :] = (flat @ k[:, :, keys]).view(*weights.shape[:-1], -1).mul_(ctx.scale)
            grad_k[:, :, keys] += flat.mT @ (q[..., queries, :] * ctx.scale).flatten(2, 3)
        grad_sinks = None
        if sinks is not None:
            drained = (_by_group(sinks, q) - log_sums).exp_()
            grad_sinks = -(drained * spread).sum((0, 3)).flatten().to(sinks.dtype)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, grad_sinks


def _reach(length: int, end: int, mask: Tensor | None, window: int) -> Iterator[tuple[slice, slice]]:
    """Each block of queries, and the keys that any of it may see."""
    past = end - length
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        nearest = max(0, past + first + 1 - window) if window else 0
        yield slice(first, last), slice(nearest, past + last if mask is None else end)


def _scores(q: Tensor, k: Tensor, queries: slice, keys: slice, mask: Tensor | None, window: int, scale: float) -> Tensor:
    """(B, KV, H / KV, queries, keys) FP32, minus infinity where a query does not see a key."""
    asked = q[..., queries, :] * scale
    scores = (asked.flatten(2, 3) @ k[:, :, keys].mT).view(*asked.shape[:-1], -1).float()
    past = k.shape[2] - q.shape[3]
    at = torch.arange(keys.start, keys.stop, device=q.device)
    own = torch.arange(past + queries.start, past + queries.stop, device=q.device).unsqueeze(1)
    hidden = at > own if mask is None else ~mask[:, :, None, queries, keys]
    if window:
        hidden = hidden | (at <= own - window)
    return scores.masked_fill_(hidden, -torch.inf)


def _by_group(sinks: Tensor, q: Tensor) -> Tensor:
    """(KV, H / KV, 1) FP32."""
    return sinks.float().view(q.shape[1], q.shape[2], 1)
