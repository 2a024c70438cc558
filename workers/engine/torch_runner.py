"""The model as PyTorch modules over a static cache: for GPUs, and on a CPU, where its slots take memory as they fill, for what the compiled decoder does
not express.

There `fused_runner.py`, where it can be used, is three to twenty times as quick.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.engine.errors import UnusableModel
from workers.engine.memory import SlotArray
from workers.engine.runner import Chunk, Logits
from workers.moe import BrokenModel, Decoder, KVCache, LayerCache, ModelConfig, Seen, UnsupportedModel, load_model


def open_torch_runner(folder: Path, device: str = "cpu", *, threads: int, max_batch: int, max_seq_len: int) -> "TorchRunner":
    torch.set_num_threads(threads)
    try:
        model, _ = load_model(folder)
    except (BrokenModel, UnsupportedModel) as error:
        raise UnusableModel(str(error)) from error
    return runner_of(model.to(device), max_batch, max_seq_len)


def runner_of(model: Decoder, max_batch: int, max_seq_len: int) -> "TorchRunner":
    """For the device that the model is on."""
    kind = FillingTorchRunner if model.embedding.weight.device.type == "cpu" else TorchRunner
    return kind(model, max_batch, max_seq_len)


class TorchRunner:
    """`Runner` over a `Decoder`. All rows of all chunks share the products; attention runs once for all decoding slots and once for
    each longer chunk."""

    takes_rows = True
    reads_guesses = True

    def __init__(self, model: Decoder, max_batch: int, max_seq_len: int):
        self.max_batch = max_batch
        self.max_seq_len = min(max_seq_len, model.config.max_seq_len)
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._tables: list[Any] = [model.cos, model.sin]
        self._blocks: list[Any] = list(model.blocks)
        self._device = model.embedding.weight.device
        self._layers = self._make_layers(model.config)
        self._window = model.config.sliding_window if model.config.sliding_layers else 0

    def _make_layers(self, config: ModelConfig) -> list[LayerCache]:
        return KVCache(config, self.max_batch, self.max_seq_len, device=self._device).layers

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        batch = _Batch(chunks, self._device, self._window)
        logits = self._model.head(self._model.norm(self._read(batch).index_select(0, batch.last)))
        array: np.ndarray = logits.float().cpu().numpy()
        return array

    @torch.inference_mode()
    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        for layer in self._layers:
            for cached in (layer.keys, layer.values):
                cached[target, :, :tokens] = cached[source, :, :tokens]

    @torch.inference_mode()
    def hidden_states(self, chunk: Chunk) -> Logits:
        """(tokens, d_model), after the last norm."""
        array: np.ndarray = self._model.norm(self._read(_Batch([chunk], self._device, self._window))).float().cpu().numpy()
        return array

    def _read(self, batch: "_Batch") -> Tensor:
        """What the last layer makes of each row: (rows, d_model)."""
        model = self._model
        x = model.embedding(batch.tokens)  # rows, d_model
        for at, rows in batch.embedded:
            x[at : at + len(rows)] = torch.from_numpy(rows).to(x)
        cos, sin = (table[batch.positions][:, None, None] for table in self._tables)  # rows, 1, 1, rotary_width / 2
        for layer, block in enumerate(self._blocks):
            q, k, v = block.attention.project(block.attention_norm(x).unsqueeze(1), cos, sin)
            heads = self._attend(block.attention, self._layers[layer], batch, q.squeeze(2), k.squeeze(2), v.squeeze(2))
            x = x + block.attention.finish(heads)
            x = x + block.feed_forward(block.feed_forward_norm(x), None)
        return x

    def _attend(self, attention: Any, cache: LayerCache, batch: "_Batch", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q`: (rows, H, width), `k`, `v`: (rows, cached heads, …) → (rows, H, …). Keys and values go into the cache first."""
        keys, values = cache.keys, cache.values
        keys[batch.slots, :, batch.positions] = k
        values[batch.slots, :, batch.positions] = v
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        seen = batch.sliding if attention.slides else batch.full
        if batch.decoding is not None:
            rows, slots = batch.decoding
            mask = seen.decoding
            k, v = (kv[:, :, : mask.shape[-1]].index_select(0, slots) for kv in (keys, values))
            out[rows] = attention.attend(q[rows].unsqueeze(2), k, v, Seen(mask)).squeeze(2)
        for (rows_of, slot), mask in zip(batch.reading, seen.reading, strict=True):
            k, v = (kv[slot : slot + 1, :, : mask.shape[-1]] for kv in (keys, values))
            together = attention.attend(q[rows_of].transpose(0, 1).unsqueeze(0), k, v, Seen(mask[None, None]))
            out[rows_of] = together.squeeze(0).transpose(0, 1)
        return out

    def close(self) -> None:
        del self._model, self._blocks, self._layers


class FillingTorchRunner(TorchRunner):
    """In the machine's own memory, which slots take page by page, and give back."""

    def _make_layers(self, config: ModelConfig) -> list[LayerCache]:
        def array() -> SlotArray:
            return SlotArray(config.n_layers, self.max_batch, config.cached_heads, self.max_seq_len, config.cached_width)

        self._arrays = [array()] if config.kv_rank else [array(), array()]  # a latent's values are a part of its keys
        keys, *values = (torch.from_numpy(array.array) for array in self._arrays)
        return [LayerCache(own, values[0][n] if values else own[..., : config.kv_rank]) for n, own in enumerate(keys)]

    def bytes_of(self, tokens: int) -> int:
        return sum(array.bytes_of(tokens) for array in self._arrays)

    def empty(self, slot: int) -> None:
        for array in self._arrays:
            array.empty(slot)

    def close(self) -> None:
        super().close()
        del self._arrays


class _Masks:
    """Who sees whom, True where a query sees a key. `decoding`: (sequences, 1, 1, longest); `reading`: (length, start + length) of each chunk."""

    def __init__(self, chunks: Sequence[Chunk], device: torch.device, window: int):
        """`window`: tokens that a query sees, itself included; 0 for all."""
        seen = torch.tensor([c.start + 1 for c in chunks if len(c.tokens) == 1], device=device)[:, None]
        at = torch.arange(int(seen.max()) if len(seen) else 0, device=device)
        decoding = at < seen
        if window:
            decoding &= at >= seen - window
        self.decoding = decoding[:, None, None]
        self.reading = [self._read(len(c.tokens), c.start, device, window) for c in chunks if len(c.tokens) > 1]

    @staticmethod
    def _read(length: int, start: int, device: torch.device, window: int) -> Tensor:
        mask = torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)
        return mask.triu(start + 1 - window) if window else mask


class _Batch:
    """The chunks as rows, and what attention needs to know of them. `window`: that of sliding layers, 0 where there are none."""

    def __init__(self, chunks: Sequence[Chunk], device: torch.device, window: int):
        def ids(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        lengths = [len(c.tokens) for c in chunks]
        ends = np.cumsum(lengths).tolist()
        self.embedded = [(end - len(c.tokens) + at, rows) for c, end in zip(chunks, ends, strict=True) for at, rows in c.embedded]
        self.tokens = ids([t for c in chunks for t in c.tokens])
        self.positions = ids([c.start + i for c in chunks for i in range(len(c.tokens))])
        self.slots = ids([c.slot for c in chunks for _ in c.tokens])
        self.last = ids([at for c, end in zip(chunks, ends, strict=True) for at in range(end - c.wanted, end)])
        single = [i for i, length in enumerate(lengths) if length == 1]
        self.decoding = (ids([ends[i] - 1 for i in single]), ids([chunks[i].slot for i in single])) if single else None
        self.reading = [(slice(e - n, e), c.slot) for c, n, e in zip(chunks, lengths, ends, strict=True) if n > 1]
        self.full = _Masks(chunks, device, 0)
        self.sliding = _Masks(chunks, device, window) if window else self.full
