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

and where `ModelConfig` asks for them:

    blocks.I.attention.qkv.bias/out.bias      as long as the products
    blocks.I.attention.q_norm/k_norm.weight   (head_dim,), or (heads · head_dim,)
    blocks.I.attention.sinks                  (n_heads,)
    blocks.I.feed_forward.experts.gate_up_bias/down_bias  (n_experts, 2 · d_expert) / (n_experts, d_model)

With latent attention (kv_rank > 0), in place of qkv:

    blocks.I.attention.q_down.weight          (q_rank, d_model), and q_norm.weight (q_rank,), where q_rank > 0
    blocks.I.attention.q_up.weight            (n_heads · head_dim, q_rank or d_model); of a head, the last rope_head_dim are rotated
    blocks.I.attention.kv_down.weight         (kv_rank + rope_head_dim, d_model), and kv_norm.weight (kv_rank,)
    blocks.I.attention.kv_up.weight           (n_heads · (head_dim - rope_head_dim + value_head_dim), kv_rank)
    blocks.I.attention.out.weight             (d_model, n_heads · value_head_dim)
"""

from typing import cast

import torch
from torch import Tensor, nn

from workers.moe.attention import Step, make_attention, see
from workers.moe.cache import KVCache, LayerCache
from workers.moe.config import ModelConfig
from workers.moe.experts import DenseNetwork, Experts
from workers.moe.norm import RMSNorm
from workers.moe.rotary import rope_tables
from workers.moe.router import Router
from workers.moe.vision import PatchEmbedding


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
        self.attention = make_attention(config, layer)
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
            if name.startswith("vision."):
                continue
            if name.endswith(("bias", "sinks")):
                nn.init.zeros_(parameter)
            if parameter.dim() == 1 or name.endswith("_bias"):
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
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # B, 1, T, rotary_width / 2
        full = sliding = see(mask, 0, length, past, cached=cache is not None)
        if self.config.sliding_layers:
            sliding = see(mask, self.config.sliding_window, length, past, cached=cache is not None)
        step = Step(cos, sin, full, sliding, None if valid is None else valid.reshape(-1), past)
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

    def routers(self) -> list[Router]:
        """The routers, from the bottom layer up; dense layers have none."""
        layers = [cast(Block, block).feed_forward for block in self.blocks]
        return [layer.router for layer in layers if layer.router is not None]
