"""The model as PyTorch modules over a static cache, for GPUs; on a CPU `fused_runner.py` is three to twenty times as quick."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workers.engine.errors import UnusableModel
from workers.engine.runner import Chunk, Logits
from workers.moe import BrokenModel, Decoder, KVCache, UnsupportedModel, load_model


def open_torch_runner(folder: Path, device: str = "cpu", *, threads: int, max_batch: int, max_seq_len: int) -> "TorchRunner":
    torch.set_num_threads(threads)
    try:
        model, _ = load_model(folder)
    except (BrokenModel, UnsupportedModel) as error:
        raise UnusableModel(str(error)) from error
    return TorchRunner(model.to(device), max_batch, max_seq_len)


class TorchRunner:
    """`Runner` over a `Decoder`. All rows of all chunks share the products; attention runs once for all decoding slots and once for
    each longer chunk."""

    def __init__(self, model: Decoder, max_batch: int, max_seq_len: int):
        self.max_batch = max_batch
        self.max_seq_len = min(max_seq_len, model.config.max_seq_len)
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._tables: list[Any] = [model.cos, model.sin]
        self._blocks: list[Any] = list(model.blocks)
        self._device = model.embedding.weight.device
        self._cache = KVCache(model.config, max_batch, self.max_seq_len, device=self._device)
        self._gqa = model.config.n_heads != model.config.n_kv_heads

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        model, batch = self._model, _Batch(chunks, self._device)
        x = model.embedding(batch.tokens)  # rows, d_model
        cos, sin = (table[batch.positions][:, None, None] for table in self._tables)  # rows, 1, 1, head_dim / 2
        for layer, block in enumerate(self._blocks):
            q, k, v = block.attention.project(block.attention_norm(x).unsqueeze(1), cos, sin)
            x = x + block.attention.out(self._attend(layer, batch, q.squeeze(2), k.squeeze(2), v.squeeze(2)))
            x = x + block.feed_forward(block.feed_forward_norm(x), None)
        logits = model.head(model.norm(x.index_select(0, batch.last)))
        array: np.ndarray = logits.float().cpu().numpy()
        return array

    def _attend(self, layer: int, batch: "_Batch", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q`: (rows, H, head_dim), `k`, `v`: (rows, KV, head_dim) → (rows, H · head_dim). Keys and values go into the cache first."""
        keys, values = self._cache.layers[layer].keys, self._cache.layers[layer].values
        keys[batch.slots, :, batch.positions] = k
        values[batch.slots, :, batch.positions] = v
        out = torch.empty_like(q)
        if batch.decoding is not None:
            rows, slots, mask = batch.decoding
            k, v = (kv[:, :, : mask.shape[-1]].index_select(0, slots) for kv in (keys, values))
            alone = F.scaled_dot_product_attention(q[rows].unsqueeze(2), k, v, attn_mask=mask, enable_gqa=self._gqa)
            out[rows] = alone.squeeze(2)
        for rows_of, slot, mask in batch.reading:
            k, v = (kv[slot, :, : mask.shape[-1]] for kv in (keys, values))
            together = F.scaled_dot_product_attention(q[rows_of].transpose(0, 1), k, v, attn_mask=mask, enable_gqa=self._gqa)
            out[rows_of] = together.transpose(0, 1)
        return out.reshape(len(q), -1)

    def close(self) -> None:
        del self._model, self._blocks, self._cache


class _Batch:
    """The chunks as rows, and what attention needs to know of them."""

    def __init__(self, chunks: Sequence[Chunk], device: torch.device):
        def ids(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        lengths = [len(c.tokens) for c in chunks]
        ends = np.cumsum(lengths).tolist()
        self.tokens = ids([t for c in chunks for t in c.tokens])
        self.positions = ids([c.start + i for c in chunks for i in range(len(c.tokens))])
        self.slots = ids([c.slot for c in chunks for _ in c.tokens])
        self.last = ids([end - 1 for end in ends])
        self.decoding: tuple[Tensor, Tensor, Tensor] | None = None
        self.reading: list[tuple[slice, int, Tensor]] = []
        single = [i for i, length in enumerate(lengths) if length == 1]
        if single:
            seen = ids([chunks[i].start + 1 for i in single])
            longest = max(chunks[i].start + 1 for i in single)
            mask = torch.arange(longest, device=device) < seen[:, None]
            self.decoding = ids([ends[i] - 1 for i in single]), ids([chunks[i].slot for i in single]), mask[:, None, None]
        for chunk, length, end in zip(chunks, lengths, ends, strict=True):
            if length > 1:
                mask = torch.ones(length, chunk.start + length, dtype=torch.bool, device=device).tril(chunk.start)
                self.reading.append((slice(end - length, end), chunk.slot, mask))
