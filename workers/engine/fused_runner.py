"""The fused decoder as the engine runs it (`runner.py`). Needs no torch."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numba import typeof
from numpy.typing import NDArray

from workers.engine.attention import room_for
from workers.engine.fused import Chosen, Floats, Scratch, forward
from workers.engine.fused_weights import Weights
from workers.engine.memory import KeysAndValues
from workers.engine.product import PANEL
from workers.engine.runner import Chunk, Logits, pointing_at
from workers.moe import ModelConfig

WIDEST = 64  # outputs of a panel of any arithmetic: results are written in whole panels
# One call's buffers hold so many tokens; longer chunks go through in pieces. Small enough for the buffers to stay in the cache.
PIECE_TOKENS = 128


class FusedRunner:
    """Compiled code over packed weights, here FP32. With several threads the chunks are shared out: a sequence stays with one thread."""

    takes_rows = True
    reads_guesses = True
    compiled: Any = staticmethod(forward)
    kept_as: Any = np.float32  # keys and values (`memory.KeysAndValues`)

    def __init__(self, weights: Weights, *, threads: int, max_batch: int, max_seq_len: int):
        config = weights.config
        self.max_batch, self.max_seq_len, self.vocab_size = max_batch, min(max_seq_len, config.max_seq_len), config.vocab_size
        self._weights = weights
        # For the types of our arguments, which do not change: numba would look at all of them at each call, 8 µs long.
        self._compiled: Callable[..., None] | None = None
        self._cos, self._sin = _rope_tables(config.rope_theta, config.head_dim, self.max_seq_len)
        self._cache = KeysAndValues(config.n_layers, max_batch, config.n_kv_heads, config.head_dim, self.max_seq_len, PANEL, self.kept_as)
        self._keys, self._values = self._cache.keys, self._cache.values
        self._logits = np.empty((max_batch, _padded(config.vocab_size)), np.float32)
        self._none_chosen = Chosen(np.zeros((max_batch, 0), np.int64), np.zeros(max_batch, np.int64), np.zeros(0, np.bool_))
        self._no_rows: Floats = np.zeros((0, config.d_model), np.float32)
        rows = max(PIECE_TOKENS, max_batch)
        self._scratch = [_scratch(config, rows, self.max_seq_len, self.room(config, rows)) for _ in range(max(1, threads))]
        self._pool = ThreadPoolExecutor(threads, "engine") if threads > 1 else None
        self.works_alone = self._pool is None  # all of a forward is done by the thread that calls it

    @staticmethod
    def room(config: ModelConfig, rows: int) -> Any:
        """What products of so many rows need for themselves (`arithmetic.multiply`)."""
        del config, rows
        return 0

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        wanted = list(accumulate((chunk.wanted for chunk in chunks), initial=0))
        if wanted[-1] > len(self._logits):
            self._logits = np.empty((wanted[-1], self._logits.shape[1]), np.float32)
        self._share_out(chunks, lambda begin, end, scratch: self._run(chunks[begin:end], wanted[begin], scratch))
        return self._logits[: wanted[-1], : self.vocab_size]

    def decode(self, chunks: Sequence[Chunk], most: Sequence[int], ends: NDArray[np.bool_]) -> list[list[int]]:
        rows, slots = _single(chunks), [chunk.slot for chunk in chunks]
        chosen = Chosen(np.empty((self.max_batch, max(most)), np.int64), np.empty(self.max_batch, np.int64), ends)
        chosen.counts[slots] = most

        def run(begin: int, end: int, scratch: Scratch) -> None:
            self._call(rows[begin:end], np.arange(end - begin), self._no_rows, begin, scratch, chosen)

        self._share_out(chunks, run)
        return [tokens[:count] for tokens, count in zip(chosen.tokens[slots].tolist(), chosen.counts[slots].tolist(), strict=True)]

    def _share_out(self, chunks: Sequence[Chunk], run: Callable[[int, int, Scratch], None]) -> None:
        """`run(begin, end, scratch)` for ranges that are all chunks together: one for each thread, at the same time."""
        if self._pool is None or len(chunks) == 1:
            run(0, len(chunks), self._scratch[0])
            return
        shares = _shares(chunks, len(self._scratch))
        pending = [self._pool.submit(run, begin, end, scratch) for (begin, end), scratch in zip(shares, self._scratch, strict=False)]
        for future in pending:
            future.result()

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        panels = -(-tokens // PANEL)
        self._keys[:, target, :, :panels] = self._keys[:, source, :, :panels]
        self._values[:, target, :, :tokens] = self._values[:, source, :, :tokens]

    def hidden_states(self, chunk: Chunk) -> Floats:
        """(tokens, d_model), after the last norm."""
        w, scratch, found = self._weights, self._scratch[0], []
        for begin in range(0, len(chunk.tokens), PIECE_TOKENS):
            piece = chunk.tokens[begin : begin + PIECE_TOKENS]
            rows = [(token, chunk.slot, chunk.start + begin + at) for at, token in enumerate(piece)]
            self._call(rows, [], self._no_rows, 0, scratch)
            found.append(scratch.stream[: len(rows)].copy())
        x = np.concatenate(found)
        normalised: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(w.layers.eps)) * w.norm
        return normalised

    def _run(self, chunks: Sequence[Chunk], first: int, scratch: Scratch) -> None:
        """Logits of `chunks` into the rows from `first` on."""
        if all(len(chunk.tokens) == 1 and not chunk.embedded for chunk in chunks):  # most forwards by far
            self._call(_single(chunks), np.arange(len(chunks)), self._no_rows, first, scratch)
            return
        rows: list[tuple[int, int, int]] = []  # token, slot, position
        last: list[int] = []
        given = self._no_rows
        for chunk in chunks:
            tokens, given = pointing_at(chunk, given)
            for at, token in enumerate(tokens):
                rows.append((token, chunk.slot, chunk.start + at))
                if at >= len(tokens) - chunk.wanted:
                    last.append(len(rows) - 1)
                if len(rows) == PIECE_TOKENS:
                    first = self._call(rows, last, given, first, scratch)
                    rows, last = [], []
        if rows:
            self._call(rows, last, given, first, scratch)

    def _call(
        self, rows: list[tuple[int, int, int]], last: Sequence[int] | NDArray[np.int64], given: Floats, first: int, scratch: Scratch, chosen: Chosen | None = None
    ) -> int:  # fmt: skip
        """The compiled code, which writes logits into the rows from `first` on. Where they end."""
        w, end = self._weights, first + len(last)
        tokens, slots, positions = np.array(rows, np.int64).T.copy()
        arguments = (
            tokens, slots, positions, np.asarray(last, np.int64), given, w.layers, w.embedding, w.head, w.norm, self._keys, self._values,
            self._cos, self._sin, scratch, self._logits[first:end], chosen or self._none_chosen,
        )  # fmt: skip
        if self._compiled is None:
            self._compiled = self.compiled.compile(tuple(map(typeof, arguments)))
        self._compiled(*arguments)
        return end

    def bytes_of(self, tokens: int) -> int:
        return self._cache.bytes_of(tokens)

    def empty(self, slot: int) -> None:
        self._cache.empty(slot)

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        del self._weights, self._cache, self._keys, self._values, self._logits, self._scratch


def _single(chunks: Sequence[Chunk]) -> list[tuple[int, int, int]]:
    """Rows of chunks of one token each."""
    return [(chunk.tokens[0], chunk.slot, chunk.start) for chunk in chunks]


def _shares(chunks: Sequence[Chunk], threads: int) -> list[tuple[int, int]]:
    """Ranges of chunks with about as many tokens each."""
    ends = np.cumsum([len(c.tokens) for c in chunks])
    edges = [0, *(int(np.searchsorted(ends, ends[-1] * (t + 1) / threads)) + 1 for t in range(threads - 1)), len(chunks)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def _rope_tables(theta: float, head_dim: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As `workers.moe.model.rope_tables`, in the same precision."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    angles = np.outer(np.arange(length, dtype=np.float32), np.float32(theta) ** -exponents).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def _padded(outputs: int) -> int:
    return -(-outputs // WIDEST) * WIDEST


def _scratch(config: ModelConfig, rows: int, max_seq_len: int, room: Any) -> Scratch:
    d, copies = config.d_model, rows * max(config.top_k, 1)
    attended = config.n_heads * config.head_dim
    hidden = max(config.d_dense, config.d_expert * max(1, config.n_shared_experts))

    def floats(*shape: int) -> Floats:
        return np.zeros(shape, np.float32)

    return Scratch(
        stream=floats(rows, d), normed=floats(rows, d), wide=floats(rows, _padded(max(2 * hidden, attended + 2 * config.n_kv_heads * config.head_dim))),
        hidden=floats(rows, max(hidden, attended)), narrow=floats(copies, _padded(d)), copied=floats(copies, d),
        queries=floats(config.n_kv_heads, rows, config.n_heads // config.n_kv_heads, config.head_dim),
        attending=room_for(config.head_dim, max_seq_len), room=room,
        chosen=np.zeros(copies, np.int64), share=floats(copies), place=np.zeros(copies, np.int64),
        ends=np.zeros(config.n_experts + 1, np.int64), ranks=floats(2, max(1, config.n_experts)),
    )  # fmt: skip
