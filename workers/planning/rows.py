"""How large the packed rows of one forward pass become, from what a dataset is known to hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROW_LENGTH, LENGTH_STEP = 96, 16  # as workers.training.batches packs
QUESTION_LEARNT = 0.5  # of a question's tokens, those of the answer; of a document all are learnt
PATCHES = 16  # tokens of a picture, as a new model sees it: 32 × 32 pixels in patches of 8 × 8 (workers.training.spec)
FILLED = 0.9  # of a row, by first fit
DEVIATIONS = 2.0  # the fullest batch among some hundred


@dataclass(frozen=True)
class Kind:
    """One kind of training records: how many, the tokens of all their text, and how many have a picture."""

    name: str
    rows: int
    tokens: float
    pictures: int = 0

    @property
    def all_tokens(self) -> float:
        return self.tokens + PATCHES * self.pictures


@dataclass(frozen=True)
class Rows:
    rows: int
    length: int
    learnt_share: float
    tokens: float  # of an average micro-batch
    patch_share: float = 0.0  # of these, those that are a part of a picture


def rows_of(kinds: Sequence[Kind], micro_batch: int, max_length: int) -> Rows:
    """The fullest forward pass of `micro_batch` examples to be expected. Without knowledge of the data: all as long as they may be."""
    known = [kind for kind in kinds if kind.rows]
    if not known:
        return Rows(micro_batch, max_length, 1.0, float(micro_batch * max_length))
    lengths = [(kind, min(float(max_length), max(1.0, kind.all_tokens / kind.rows))) for kind in known]
    # A document that is longer than an example may be is cut, so that it comes as several.
    counts = [max(kind.rows, kind.all_tokens / length) for kind, length in lengths]
    examples = sum(counts)
    mean = sum(count * length for count, (_, length) in zip(counts, lengths, strict=True)) / examples
    learnt = sum(
        count * length * (1.0 if kind.name == "document" else QUESTION_LEARNT * kind.tokens / kind.all_tokens)
        for count, (kind, length) in zip(counts, lengths, strict=True)
    ) / (examples * mean)
    patches = PATCHES * sum(kind.pictures for kind in known) / sum(kind.all_tokens for kind in known)
    # The lengths of texts scatter about as much as they measure.
    fullest = min(micro_batch * mean * (1 + DEVIATIONS / math.sqrt(micro_batch)), float(micro_batch * max_length))
    longest = min(float(max_length), 3 * max(length for _, length in lengths))
    length = max(ROW_LENGTH, -(-math.ceil(longest) // LENGTH_STEP) * LENGTH_STEP)
    return Rows(max(1, math.ceil(fullest / (length * FILLED))), length, learnt, micro_batch * mean, patches)
