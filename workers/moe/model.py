"""The decoder, top to bottom. It knows nothing of parallelism, precision or storage; those are applied from outside.

Parameters, for whoever reads the weights (an engine, an export):

    embedding.weight                          (vocab, d_model)
    blocks.I.attention_norm.weight            (d_model,)
    blocks.I.attention.qkv.weight             ((n_heads + 2 · n_kv_heads) · head_dim, d_model): queries, keys, values
    blocks.I.attention.out.weight             (d_model, n_heads · head_dim)
    blocks.I.feed_forward_norm.weight         (d_model,)
    blocks.I.feed_forward.router.weight/.bias (n_experts, d_model) / (n_experts,)
    blocks.I.feed_forward.experts.gate_up     (n_experts, d_model, 2 · d_expert), gate first
    blocks.I.feed_forward.experts.down        (n_experts, d_expert, d_model)
    blocks.I.feed_forward.shared.gate_up/down as `dense` below, where there are shared experts
    blocks.I.feed_forward.dense.gate_up/down  (d_model, 2 · d_dense) / (d_dense, d_model), where the layer is dense
    norm.weight                               (d_model,)
    head.weight                               (vocab, d_model); the embedding itself where they are tied
    vision.…                                  the image front end, where there is one (`workers.moe.vision`)
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.moe.config import ModelConfig
from workers.moe.experts import DenseNetwork, Experts
from workers.moe.norm import RMSNorm
from workers.moe.rotary import rope_tables, rotate
from workers.moe.router import Router
from workers.moe.vision import PatchEmbedding


@dataclass(frozen=True)
class Step:
    """What all layers share in one forward."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None  # (B or 1, 1, T, past + T) bool, True where a query sees a key
    bias: Tensor | None  # the same as float, 0 or minus infinity, where attention is written out (`attend_packed`)
    valid: Tensor | None  # (B · T,) bool, False for padding
    past: int  # tokens in the cache before this forward


@dataclass
class LayerCache:
    """Keys and values of one layer, each (B, n_kv_heads, capacity, head_dim)."""

    keys: Tensor
    values: Tensor


class KVCache:
    """What a decoder remembers of `length` tokens, the same number for each of `batch` sequences."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None):
        def zeros() -> Tensor:
            return torch.zeros(batch, config.n_kv_heads, capacity, config.head_dim, dtype=dtype, device=device)

        self.layers = [LayerCache(zeros(), zeros()) for _ in range(config.n_layers)]
        self.length = 0


# Packed training rows are short, and then PyTorch's CPU kernel in BF16 takes six times as long, backward, as its formula written
# out (19 against 3.3 ms for 12 rows of 96 tokens, four heads of 32). Longer ones would not fit the memory.
LONGEST_WRITTEN_OUT = 512


def attend_packed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`q`: (B, H, T, head_dim), `k`, `v`: (B, KV, T, head_dim), `bias`: (B, 1, T, T) → (B, H, T, head_dim)."""
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    together = (q * width**-0.5).reshape(batch, groups, heads // groups * length, width)  # the queries of one key head
    scores = (together @ k.transpose(-1, -2)).view(batch, heads, length, length)
    weights = (scores.float() + bias).softmax(-1).to(v.dtype)
    return (weights.view(batch, groups, -1, length) @ v).view(batch, heads, length, width)


class Attention(nn.Module):
    """Grouped-query attention. `qkv` holds the query, key and value matrices one above the other."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, config.d_model, bias=False)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x, step.cos, step.sin)
        if cache is not None:
            end = step.past + length
            cache.keys[:, :, step.past : end] = k
            cache.values[:, :, step.past : end] = v
            k, v = cache.keys[:, :, :end].to(q.dtype), cache.values[:, :, :end].to(q.dtype)
        if step.bias is not None:
            return self.out(attend_packed(q, k, v, step.bias).transpose(1, 2).reshape(batch, length, -1))
        # Without a mask: causal from position 0, or a single new token, which sees everything.
        causal = step.mask is None and length > 1
        gqa = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=step.mask, is_causal=causal, enable_gqa=gqa)
        return self.out(out.transpose(1, 2).reshape(batch, length, -1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x`: (B, T, d_model) → rotated queries (B, H, T, head_dim), rotated keys and values (B, KV, T, head_dim)."""
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        turned = rotate(heads[:, : self.heads + self.kv_heads], cos, sin)
        return turned[:, : self.heads], turned[:, self.heads :], heads[:, self.heads + self.kv_heads :]


class FeedForward(nn.Module):
    """A mixture of experts, with shared experts beside it where configured; or one dense network."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.router = self.experts = self.shared = self.dense = None
        if layer < config.dense_layers:
            self.dense = DenseNetwork(config.d_model, config.d_dense)
            return
        self.router = Router(config)
        self.experts = Experts(config)
        if config.n_shared_experts:
            self.shared = DenseNetwork(config.d_model, config.n_shared_experts * config.d_expert)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """`x`: (tokens, d_model) → (tokens, d_model). `valid`: (tokens,) bool, False for padding."""
        if self.dense is not None:
            return self.dense(x)
        assert self.router is not None and self.experts is not None
        ids, weights = self.router(x, valid)
        out = self.experts(x, ids, weights)
        return out if self.shared is None else out + self.shared(x)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config, layer)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step, cache)
        batch, length, width = x.shape
        return x + self.feed_forward(self.feed_forward_norm(x).view(-1, width), step.valid).view(batch, length, width)


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.cos: Tensor
        self.sin: Tensor
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.vision = PatchEmbedding(config) if config.image_size else None
        self.rebuild_tables()

    def rebuild_tables(self) -> None:
        """Compute the rotary tables on the weights' device: a model built on the meta device has none."""
        cos, sin = rope_tables(self.config, self.embedding.weight.device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal weights: 0.02 for embedding, head and routers, else so that a product keeps about half its input's variance.

        A plain 0.02 everywhere (GPT-2 §2.3) is for wide models: at width 128 the blocks say next to nothing at first, and the
        held-out loss of the demonstration after 300 steps was 3.75, against 3.19 so. What writes into the residual stream is
        smaller with depth, as there.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1 or name.startswith("vision."):
                continue
            std = 0.02
            if name.startswith("blocks.") and "router" not in name:
                inputs = parameter.shape[-1] if name.endswith(".weight") else parameter.shape[-2]
                std = (2 * inputs) ** -0.5
            if name.endswith(("attention.out.weight", ".down")):
                std /= (2 * self.config.n_layers) ** 0.5
            nn.init.normal_(parameter, 0.0, std, generator=generator)
        if self.vision is not None:
            self.vision.initialise(generator)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        select: Tensor | None = None,
        images: Tensor | None = None,
        image_at: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, vocab); with `select`, int64 indices into B · T, only those rows: (selected, vocab).

        `tokens`: (B, T) int64. `positions`: (B, T), else they go on from the cache's length, or from 0. Causal; `mask`,
        (B, 1, T, past + T) bool, replaces that. `valid`: (B, T) bool, False for padding, which no expert then sees. `cache` is
        extended by the T tokens. `images`, (N, image_size, image_size, 3) uint8, take the place of the tokens at `image_at`,
        (N · image_patches,) int64 into B · T. ValueError beyond `max_seq_len`.
        """
        past, length = (cache.length if cache else 0), tokens.shape[1]
        if positions is None:
            if past + length > self.config.max_seq_len:
                raise ValueError(f"{past + length} tokens are more than the model's {self.config.max_seq_len}")
            cos, sin = self.cos[past : past + length], self.sin[past : past + length]
        else:
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # B, 1, T, head_dim / 2
        if mask is None and past and length > 1:
            mask = torch.ones(length, past + length, dtype=torch.bool, device=tokens.device).tril(past)
        step = Step(cos, sin, mask, None if cache else self._bias(mask, length), None if valid is None else valid.reshape(-1), past)
        x = self.embedding(tokens)
        if self.vision is not None:
            x = self.vision.place(x, images, image_at)
        for layer, block in enumerate(self.blocks):
            x = block(x, step, cache.layers[layer] if cache else None)
        if cache:
            cache.length += length
        if select is not None:
            x = x.reshape(-1, x.shape[-1]).index_select(0, select)
        return self.head(self.norm(x))

    @staticmethod
    def _bias(mask: Tensor | None, length: int) -> Tensor | None:
        if mask is None or mask.device.type != "cpu" or not torch.is_grad_enabled() or length > LONGEST_WRITTEN_OUT:
            return None
        return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)

    def routers(self) -> list[Router]:
        """The routers, from the bottom layer up; dense layers have none."""
        layers = [cast(Block, block).feed_forward for block in self.blocks]
        return [layer.router for layer in layers if layer.router is not None]
