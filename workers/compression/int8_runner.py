"""An INT8 model as the engine runs it (`workers.engine.runner`)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workers.compression.int8_layers import Scratch, decode
from workers.compression.int8_weights import Int8Weights
from workers.engine.memory import KeysAndValues
from workers.engine.runner import Chunk, Logits, pointing_at

# One forward's buffers hold so many tokens; longer prompts go through in pieces. Small enough for the buffers to stay in the cache.
PIECE_TOKENS = 256


class Int8Runner:
    """Compiled code over packed INT8 weights. With several threads the chunks are shared out: a sequence stays with one thread."""

    takes_rows = True

    def __init__(self, weights: Int8Weights, *, threads: int, max_batch: int, max_seq_len: int):
        config = weights.config
        self.max_batch, self.max_seq_len, self.vocab_size = max_batch, max_seq_len, config.vocab_size
        self._weights = weights
        self._cos, self._sin = _rope_tables(config.rope_theta, config.head_dim, max_seq_len)
        self._cache = KeysAndValues(config.n_layers, max_batch, config.n_kv_heads, config.head_dim, max_seq_len)
        self._keys, self._values = self._cache.keys, self._cache.values
        self._logits = np.empty((max_batch, weights.head.scale.shape[1]), np.float32)
        self._no_rows = np.zeros((0, config.d_model), np.float32)
        self._scratch = [_scratch(weights, max(PIECE_TOKENS, max_batch), max_seq_len) for _ in range(max(1, threads))]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        if self._pool is None or len(chunks) == 1:
            self._run(chunks, 0, self._scratch[0])
        else:
            shares = _share_out(chunks, len(self._scratch))
            pending = [self._pool.submit(self._run, chunks[a:b], a, scratch) for (a, b), scratch in zip(shares, self._scratch, strict=False)]
            for future in pending:
                future.result()
        return self._logits[: len(chunks), : self.vocab_size]

    def _run(self, chunks: Sequence[Chunk], first: int, scratch: Scratch) -> None:
        """Logits of `chunks` into the rows from `first` on."""
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        ready = first
        given = self._no_rows
        for chunk in chunks:
            begin = 0
            chunk_tokens, given = pointing_at(chunk, given)
            while begin < len(chunk.tokens):
                piece = chunk_tokens[begin : begin + PIECE_TOKENS - len(tokens)]
                tokens += piece
                slots += [chunk.slot] * len(piece)
                positions += range(chunk.start + begin, chunk.start + begin + len(piece))
                begin += len(piece)
                if begin == len(chunk.tokens):
                    last.append(len(tokens) - 1)
                if len(tokens) == PIECE_TOKENS:
                    self._decode(tokens, slots, positions, last, given, ready, scratch)
                    ready += len(last)
                    tokens, slots, positions, last = [], [], [], []
        if tokens:
            self._decode(tokens, slots, positions, last, given, ready, scratch)

    def _decode(
        self, tokens: list[int], slots: list[int], positions: list[int], last: list[int], given: NDArray[np.float32], ready: int, scratch: Scratch
    ) -> None:
        w = self._weights
        decode(
            _integers(tokens), _integers(slots), _integers(positions), _integers(last), given, w.layers, w.embedding, w.head, w.norm,
            self._keys, self._values, self._cos, self._sin, scratch, self._logits[ready : ready + len(last)],
        )  # fmt: skip

    def bytes_of(self, tokens: int) -> int:
        return self._cache.bytes_of(tokens)

    def empty(self, slot: int) -> None:
        self._cache.empty(slot)

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        del self._weights, self._cache, self._keys, self._values, self._logits, self._scratch


def _integers(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _share_out(chunks: Sequence[Chunk], threads: int) -> list[tuple[int, int]]:
    """Ranges of chunks with about as many tokens each."""
    ends = np.cumsum([len(c.tokens) for c in chunks])
    cuts = [int(np.searchsorted(ends, ends[-1] * (t + 1) / threads)) + 1 for t in range(threads - 1)]
    edges = [0, *cuts, len(chunks)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def _rope_tables(theta: float, head_dim: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As `workers.moe.model.rope_tables`, in the same precision."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    angles = np.outer(np.arange(length, dtype=np.float32), np.float32(theta) ** -exponents).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def _scratch(weights: Int8Weights, rows: int, max_seq_len: int) -> Scratch:
    layers, d_model = weights.layers, weights.config.d_model
    copies = rows * max(weights.config.top_k, 1)
    into_stream = (layers.out, layers.dense.down, layers.experts.down, layers.shared.down)
    widened = (layers.qkv, layers.dense.gate_up, layers.experts.gate_up, layers.shared.gate_up)
    narrow, wide = (max(m.scale.shape[1] for m in group) for group in (into_stream, widened))
    wide_in = max(m.inputs for m in (*into_stream, *widened))
    # Experts may all be the same: one of them then sees every row, never more. Padding of the inputs stays what it is: its weights are 0.
    return Scratch(
        stream=np.zeros((rows, d_model), np.float32), normed=np.zeros((rows, d_model), np.float32),
        bytes_in=np.zeros((rows, wide_in), np.uint8), scale_in=np.zeros(rows, np.float32),
        bytes_hidden=np.zeros((rows, wide_in), np.uint8), scale_hidden=np.zeros(rows, np.float32),
        bytes_sorted=np.zeros((copies, wide_in), np.uint8), scale_sorted=np.zeros(copies, np.float32),
        wide=np.zeros((rows, wide), np.float32), narrow=np.zeros((rows, narrow), np.float32), hidden=np.zeros((rows, wide_in), np.float32),
        scores=np.zeros(max_seq_len, np.float32), chosen=np.zeros(copies, np.int64), share=np.zeros(copies, np.float32),
        owner=np.zeros(copies, np.int64),
    )  # fmt: skip
