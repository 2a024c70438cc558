"""What runs a model for the engine: chunks of sequences in, logits out. This module needs numpy only.

A runner owns the weights and the keys and values of `max_batch` sequences, each in a *slot* of its own. One forward takes chunks:
tokens that follow each other in one slot. A prompt comes as one chunk or, when it is long, as several; a decoding sequence is a
chunk of one token. All of them share the forward, so that work that does not look back (everything but attention) is one product
over all rows:

    runner.forward([Chunk(slot=3, start=0, tokens=[17, 4, 90]), Chunk(slot=0, start=41, tokens=[7])])  →  (2, vocab) float32

How another package serves its own kind of model folder (INT8, ONNX): it offers

    open_runner(folder: Path, *, threads: int, max_batch: int, max_seq_len: int, device: str) -> Runner | None

as a public name of `workers.compression`. `open_engine` calls it for a folder that has a `model.onnx`, or whose `config.json` has a
`storage` entry; `None` means "nothing quicker than the plain weights", and then the folder goes the ordinary way
(`workers.moe.load_model`, which decodes registered storages). `max_seq_len` is the most tokens a slot must hold, already at most what
the model can. It raises `workers.engine.UnusableModel` (an EngineError; message for people) for a damaged folder. The tokenizer, the
scheduling, sampling, text and stop strings are the engine's; a runner knows none of them. What is imported at the top of
`workers.compression` is paid by every such engine: torch alone costs 200 MB and a second, so import it where it is used.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Chunk(NamedTuple):
    """Tokens of the sequence in `slot`, at the positions from `start` on. What the slot held before `start` is kept, the rest forgotten.

    `embedded`: rows (n, d_model) that take the place of the tokens' own embeddings from an index in `tokens` on: a picture's patches.
    Only runners that say so (`takes_rows`) are given such. `wanted`: logits after so many of the last tokens, more than one only where the
    runner says that it gives them (`reads_guesses`).
    """

    slot: int
    start: int
    tokens: Sequence[int]
    embedded: Sequence[tuple[int, NDArray[np.float32]]] = ()
    wanted: int = 1


def pointing_at(chunk: Chunk, given: NDArray[np.float32]) -> tuple[Sequence[int], NDArray[np.float32]]:
    """The chunk's tokens for compiled code, which takes -1 - n for row n of `given`, and `given` with the chunk's rows added."""
    if not chunk.embedded:
        return chunk.tokens, given
    tokens = list(chunk.tokens)
    for at, rows in chunk.embedded:
        tokens[at : at + len(rows)] = range(-1 - len(given), -1 - len(given) - len(rows), -1)
        given = np.ascontiguousarray(np.concatenate([given, rows]), np.float32)
    return tokens, given


class Runner(Protocol):
    """A loaded model. Called from one thread at a time.

    A row of logits must not depend on the other chunks beyond rounding (1e-4): an answer is the same whatever its company.
    """

    max_batch: int  # slots: 0 … max_batch - 1
    max_seq_len: int  # tokens a slot holds
    vocab_size: int

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        """Logits after the last token of each chunk, or the last `wanted`: (Σ wanted, vocab) float32, valid until the next call. At most one
        chunk a slot.

        A chunk with `start=0` begins a new sequence: nothing need be cleared before. `start + len(tokens) ≤ max_seq_len`.
        """
        ...

    def close(self) -> None:
        """Give the memory back. No forward comes after it."""
        ...


class ReadsStates(Protocol):
    """What a runner that serves embeddings offers too; without it the engine refuses them."""

    def hidden_states(self, chunk: Chunk) -> NDArray[np.float32]:
        """(tokens, d_model): what stands before the head, normalised, after each of the chunk's tokens. It is read as by `forward`."""
        ...


class CopiesSlots(Protocol):
    """What a runner offers whose slots can be copied: a beginning that many conversations share is then computed once."""

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Let slot `target` hold the first `tokens` that `source` holds."""
        ...


class DecodesAlone(Protocol):
    """What a runner offers that can go on by itself where every next token is the likeliest: several steps cost the engine one call."""

    def decode(self, chunks: Sequence[Chunk], most: Sequence[int], ends: NDArray[np.bool_]) -> list[list[int]]:
        """The next tokens after each chunk, which is of one token: `most` of them, at least 1, or fewer where one is an end, `ends[token]`, (vocab,),
        or is -1: there the logits were not finite. All but the last are in the slot then, as if they had come in chunks."""
        ...


class GivesMemoryBack(Protocol):
    """What a runner offers whose slots take memory as they fill. Without it all slots have theirs from the beginning."""

    def bytes_of(self, tokens: int) -> int:
        """The most memory that a slot's keys and values take which holds so many tokens."""
        ...

    def empty(self, slot: int) -> None:
        """Give the slot's memory back. What it held is forgotten."""
        ...
