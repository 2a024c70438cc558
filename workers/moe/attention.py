"""Attention: who sees what, and the two ways in which queries, keys and values are made.

An attention module has three steps, which the engine calls one by one: `project` makes queries, keys and values as they are cached,
`attend` lets queries see keys, `finish` turns what the heads say into what is added to the stream.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.moe.blockwise import BLOCK, attend_in_blocks
from workers.moe.cache import LayerCache
from workers.moe.config import ModelConfig
from workers.moe.norm import RMSNorm
from workers.moe.rotary import rotate_first, rotate_last


@dataclass(frozen=True)
class Seen:
    """Who sees whom in the layers of one kind. The queries are the last of the tokens whose keys there are."""

    mask: Tensor | None = None  # (B or 1, 1, T, past + T) bool, True where a query sees a key; None: causal
    window: int = 0  # tokens that a query sees of those, itself included; 0: all
    bias: Tensor | None = None  # both as float, 0 or minus infinity, where attention is written out (`attend_packed`)


@dataclass(frozen=True)
class Step:
    """What all layers share in one forward."""

    cos: Tensor
    sin: Tensor
    full: Seen
    sliding: Seen
    valid: Tensor | None  # (B · T,) bool, False for padding
    past: int  # tokens in the cache before this forward


# Packed training rows are short, and then PyTorch's CPU kernel in BF16 takes six times as long, backward, as its formula written
# out (19 against 3.3 ms for 12 rows of 96 tokens, four heads of 32). Longer ones would not fit the memory.
LONGEST_WRITTEN_OUT = 512

LATENT_NORM_EPS = 1e-6  # DeepSeek's, whatever the other norms have


def see(mask: Tensor | None, window: int, length: int, past: int, *, cached: bool) -> Seen:
    """What `Seen` says of these, with its float form where attention over `length` new tokens is to be written out."""
    window = window if past + length > window else 0
    if cached or mask is None or mask.device.type != "cpu" or not torch.is_grad_enabled() or length > LONGEST_WRITTEN_OUT:
        return Seen(mask, window)
    return Seen(mask, window, as_bias(slide(mask, window, length, past, mask.device)))


def as_bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)


def slide(mask: Tensor | None, window: int, length: int, past: int, device: torch.device) -> Tensor:
    """`mask` (None: causal) without the keys that lie `window` tokens back or further (0: with all)."""
    if mask is None:
        mask = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)
    if not window:
        return mask
    return mask & torch.ones(mask.shape[-2:], dtype=torch.bool, device=device).triu(past + 1 - window)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float) -> Tensor:
    """By PyTorch's kernels. `q`: (B, H, T, w), `k`: (B, KV, S, w), `v`: (B, KV, S, v) → (B, H, T, v)."""
    length, end = q.shape[2], k.shape[2]
    mask = seen.mask
    if seen.window or (mask is None and 1 < length < end):  # PyTorch's own causal order begins at the first key
        mask = slide(mask, seen.window, length, end - length, q.device)
    causal = mask is None and length > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def attend_packed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, sinks: Tensor | None = None) -> Tensor:
    """Attention written out. `q`: (B, H, T, w), `k`: (B, KV, S, w), `v`: (B, KV, S, v), `bias`: (B or 1, 1, T, S) → (B, H, T, v).

    `sinks`: (H,), a logit of each head that takes its share of the softmax and has no value.
    """
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    together = (q * scale).reshape(batch, groups, heads // groups * length, width)  # the queries of one key head
    scores = (together @ k.transpose(-1, -2)).view(batch, heads, length, -1).float()
    if bias is not None:
        scores = scores + bias
    if sinks is None:
        weights = scores.softmax(-1).to(v.dtype)
    else:
        drained = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(batch, -1, length, 1)], dim=-1)
        weights = drained.softmax(-1)[..., :-1].to(v.dtype)
    return (weights.reshape(batch, groups, heads // groups * length, -1) @ v).view(batch, heads, length, -1)


class Attention(nn.Module):
    """Grouped-query attention. `qkv` holds the query, key and value matrices one above the other."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.scale = config.n_heads, config.n_kv_heads, config.head_dim, config.attention_scale
        self.slides = layer in config.sliding_layers
        self.clip = config.clip_qkv
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=config.attention_bias)
        self.out = nn.Linear(self.heads * self.head_dim, config.d_model, bias=config.attention_out_bias)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if config.attention_sinks else None
        self.q_norm = self.k_norm = None
        self.norm_heads = config.qk_norm == "head"
        if config.qk_norm != "none":
            q_width, k_width = (1, 1) if self.norm_heads else (self.heads, self.kv_heads)
            self.q_norm, self.k_norm = RMSNorm(q_width * self.head_dim, config.norm_eps), RMSNorm(k_width * self.head_dim, config.norm_eps)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None) -> Tensor:
        q, k, v = self.project(x, step.cos, step.sin)
        seen = step.sliding if self.slides else step.full
        if cache is not None:
            end = step.past + x.shape[1]
            cache.keys[:, :, step.past : end] = k
            cache.values[:, :, step.past : end] = v
            k, v = cache.keys[:, :, :end].to(q.dtype), cache.values[:, :, :end].to(q.dtype)
        return self.finish(self.attend(q, k, v, seen).transpose(1, 2))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x`: (B, T, d_model) → rotated queries (B, H, T, head_dim), rotated keys and values (B, KV, T, head_dim)."""
        batch, length, _ = x.shape
        projected = self.qkv(x)
        if self.q_norm is not None or self.clip:
            projected = self._limit(projected)
        heads = projected.view(batch, length, -1, self.head_dim).transpose(1, 2)
        turned = rotate_first(heads[:, : self.heads + self.kv_heads], cos, sin)
        return turned[:, : self.heads], turned[:, self.heads :], heads[:, self.heads + self.kv_heads :]

    def _limit(self, projected: Tensor) -> Tensor:
        """Normalised queries and keys, and all of them cut."""
        q_width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        q, k, v = projected.split([q_width, kv_width, kv_width], dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            if self.norm_heads:
                q, k = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k))
            q, k = self.q_norm(q), self.k_norm(k)
            if self.norm_heads:
                q, k = q.flatten(-2), k.flatten(-2)
        joined = torch.cat([q, k, v], dim=-1)
        return joined.clamp(-self.clip, self.clip) if self.clip else joined

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        """`q`: (B, H, T, …), `k`, `v`: (B, KV, S, …) → (B, H, T, …)."""
        if seen.bias is not None:
            return attend_packed(q, k, v, seen.bias, self.scale, self.sinks)
        length, end = q.shape[2], k.shape[2]
        if length > BLOCK and (self.sinks is not None or seen.window):
            return attend_in_blocks(q, k, v, seen.mask, seen.window, self.scale, self.sinks)
        if self.sinks is None:
            return attend_plainly(q, k, v, seen, self.scale)
        bias = as_bias(slide(seen.mask, seen.window, length, end - length, q.device))
        return attend_packed(q, k, v, bias, self.scale, self.sinks)

    def finish(self, heads: Tensor) -> Tensor:
        """`heads`: (…, H, head_dim) → (…, d_model)."""
        return self.out(heads.flatten(-2))


class LatentAttention(nn.Module):
    """Keys and values of all heads are made from one narrow latent a token (DeepSeek-V2 §2.1), and only that is cached.

    Over a cache, `kv_up` is not applied to what was cached: its key half moves to the queries, its value half behind the softmax
    (§2.1.2, "absorbed"), so that all heads attend to the latents themselves, as to one key head. Without a cache keys and values
    are made, which is quicker while each is used by many queries at once.
    """

    slides, sinks = False, None

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.heads, self.scale = config.n_heads, config.attention_scale
        self.rank, self.rotated, self.value_dim = config.kv_rank, config.rope_head_dim, config.value_head_dim
        self.passed = config.head_dim - config.rope_head_dim  # of a query and key, not rotated
        if config.q_rank:
            self.q_down = nn.Linear(config.d_model, config.q_rank, bias=False)
            self.q_norm = RMSNorm(config.q_rank, LATENT_NORM_EPS)
        self.q_up = nn.Linear(config.q_rank or config.d_model, self.heads * config.head_dim, bias=False)
        self.q_rank = config.q_rank
        self.kv_down = nn.Linear(config.d_model, self.rank + self.rotated, bias=False)
        self.kv_norm = RMSNorm(self.rank, LATENT_NORM_EPS)
        self.kv_up = nn.Linear(self.rank, self.heads * (self.passed + self.value_dim), bias=False)
        self.out = nn.Linear(self.heads * self.value_dim, config.d_model, bias=False)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None) -> Tensor:
        if cache is None:
            q, k, v = self._expanded(x, step.cos, step.sin)
            return self.out(self.attend(q, k, v, step.full).transpose(1, 2).flatten(-2))
        q, k, _ = self.project(x, step.cos, step.sin)
        end = step.past + x.shape[1]
        cache.keys[:, :, step.past : end] = k
        k, v = cache.keys[:, :, :end].to(q.dtype), cache.values[:, :, :end].to(q.dtype)
        return self.finish(self.attend(q, k, v, step.full).transpose(1, 2))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x`: (B, T, d_model) → queries of latents (B, H, T, kv_rank + rotated), latents (B, 1, T, …), and their part that is the value."""
        q, latent, turned = self._latents(x, cos, sin)
        key_half, _ = self._halves()
        asked = torch.einsum("bhtp,hpr->bhtr", q[..., : self.passed], key_half)
        latents = torch.cat([latent.unsqueeze(1), turned], dim=-1)
        return torch.cat([asked, q[..., self.passed :]], dim=-1), latents, latents[..., : self.rank]

    def finish(self, heads: Tensor) -> Tensor:
        """`heads`: (…, H, kv_rank), latents → (…, d_model)."""
        _, value_half = self._halves()
        return self.out(torch.einsum("...hr,hvr->...hv", heads, value_half).flatten(-2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        """As `Attention.attend`; `v` may be narrower than `k`."""
        if seen.bias is not None:
            return attend_packed(q, k, v, seen.bias, self.scale)
        return attend_plainly(q, k, v, seen, self.scale)

    def _latents(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, head_dim), the latent (B, T, kv_rank), the rotated part of all keys (B, 1, T, rotated)."""
        asked = self.q_norm(self.q_down(x)) if self.q_rank else x
        q = self.q_up(asked).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        latent, turning = self.kv_down(x).split([self.rank, self.rotated], dim=-1)
        return rotate_last(q, cos, sin), self.kv_norm(latent), rotate_last(turning.unsqueeze(1), cos, sin)

    def _expanded(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, latent, turned = self._latents(x, cos, sin)
        made = self.kv_up(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        passed, v = made.split([self.passed, self.value_dim], dim=-1)
        return q, torch.cat([passed, turned.expand(-1, self.heads, -1, -1)], dim=-1), v

    def _halves(self) -> tuple[Tensor, Tensor]:
        """`kv_up` as what makes keys, (H, passed, kv_rank), and what makes values, (H, value_dim, kv_rank)."""
        key_half, value_half = self.kv_up.weight.view(self.heads, -1, self.rank).split([self.passed, self.value_dim], dim=1)
        return key_half, value_half


def make_attention(config: ModelConfig, layer: int) -> "Attention | LatentAttention":
    return (LatentAttention if config.kv_rank else Attention)(config, layer)
