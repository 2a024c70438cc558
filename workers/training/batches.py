"""Which examples a step sees, and how they are packed into rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.training.examples import Example

ROW_LENGTH = 96  # rows are at least so long: short questions are packed several to a row
# Lengths are rounded up: on CPU, oneDNN compiles each product anew for shapes that it has not met, which costs more than the
# product itself.
LENGTH_STEP = 16
SELECT_STEP = 32
NO_TARGET = -100  # what F.cross_entropy leaves out


class Sampler:
    """An endless order of examples, each epoch shuffled anew; the same for the same seed, from any position on.

    `weights` say how often an example comes in an epoch: 2.5 is twice, and thrice every other time.
    """

    def __init__(self, weights: np.ndarray, seed: int):
        self._weights = weights
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)
        self.position = (0, 0)  # epoch, offset within it

    def take(self, count: int) -> list[int]:
        """The next `count` indices. Short datasets repeat within a batch."""
        taken: list[int] = []
        epoch, offset = self.position
        while len(taken) < count:
            order = self._order_of(epoch)
            more = order[offset : offset + count - len(taken)]
            taken += more.tolist()
            offset += len(more)
            if offset >= len(order):
                epoch, offset = epoch + 1, 0
        self.position = (epoch, offset)
        return taken

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.default_rng((self._seed, epoch))
            times = np.floor(self._weights + generator.random(len(self._weights))).astype(np.int64)
            if not times.any():
                times[:] = 1  # all weights small, and no luck: an epoch is never empty
            self._order = generator.permutation(np.repeat(np.arange(len(self._weights)), times))
            self._epoch = epoch
        return self._order


def sampling_weights(examples: Sequence[Example], domain_weights: dict[str, float]) -> np.ndarray:
    return np.array([e.weight * domain_weights.get(e.domain, 1.0) for e in examples])


MOST_TURNS = 3


def as_conversations(examples: Sequence[Example], share: float, generator: np.random.Generator, max_length: int) -> list[Example]:
    """Join about `share` of the questions with what follows into conversations of two or three turns, at no cost in tokens.

    A model that has seen single questions only is thrown off by what was said before. Documents stay by themselves.
    """
    joined: list[Example] = []
    turns = 0
    for example in examples:
        before = joined[-1] if joined else None
        fits = before is not None and before.is_question and example.is_question and turns < MOST_TURNS and len(before) + len(example) <= max_length
        if before is not None and fits and generator.random() < share:
            joined[-1] = before.followed_by(example)
            turns += 1
        else:
            joined.append(example)
            turns = 1
    return joined


@dataclass(frozen=True)
class Batch:
    """Examples packed into R rows of length T; a token sees its own example only.

    `tokens`, `positions`: (R, T) int64; `mask`: (R, 1, T, T) bool; `valid`: (R, T) bool; `select`: the positions in R · T from
    which a learnt token is predicted, and `targets`: those tokens; at their end is padding, with the target NO_TARGET. `example`:
    (R, T) int64, the index in the batch, -1 for padding. `domain`: (R, T) int64, each token's, where somebody asked for it.
    `images`: (N, size, size, 3) uint8 and `image_at`: (N · patches,) int64, where in R · T their patches stand; both None where no
    example has a picture.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    valid: Tensor
    select: Tensor
    targets: Tensor
    example: Tensor
    token_count: int
    learnt_count: int
    domain: Tensor | None = None
    images: Tensor | None = None
    image_at: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor | None]:
        """What the decoder is given beside the tokens, to say only what is to be learnt."""
        return {name: getattr(self, name) for name in ("positions", "mask", "valid", "select", "images", "image_at")}

    @property
    def owners(self) -> Tensor:
        """The example of each learnt token, as `select` has them without its padding: (learnt,)."""
        return self.example.view(-1)[self.select[: self.learnt_count]]

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def pack(examples: Sequence[Example]) -> Batch:
    """Pack by first fit, longest first, into rows as long as the longest example or ROW_LENGTH."""
    length = max(ROW_LENGTH, _rounded(max((len(e) for e in examples), default=0), LENGTH_STEP))
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(examples)), key=lambda i: -len(examples[i])):
        size = len(examples[index])
        row = next((r for r, free in enumerate(room) if free >= size), None)
        if row is None:
            rows.append([])
            room.append(length)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= size
    shape = (len(rows), length)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    example, learnt = np.full(shape, -1, np.int64), np.zeros(shape, bool)
    images: list[np.ndarray] = []
    image_at: list[np.ndarray] = []
    for row, members in enumerate(rows):
        at = 0
        for index in members:
            end = at + len(examples[index])
            tokens[row, at:end] = examples[index].ids
            positions[row, at:end] = np.arange(end - at)
            example[row, at:end] = index
            learnt[row, at:end] = examples[index].learnt
            images += examples[index].images
            image_at.append(examples[index].image_at + row * length + at)
            at = end
    where = np.flatnonzero(learnt)  # never the first of a row: the first token of an example is given
    select = np.zeros(_rounded(len(where), SELECT_STEP), np.int64)
    targets = np.full(len(select), NO_TARGET, np.int64)
    select[: len(where)], targets[: len(where)] = where - 1, tokens.reshape(-1)[where]
    owner = torch.from_numpy(example)
    # Padding sees padding, so that no row of the softmax is empty.
    mask = (owner[:, :, None] == owner[:, None, :]).tril_().unsqueeze(1)
    return Batch(
        tokens=torch.from_numpy(tokens), positions=torch.from_numpy(positions), mask=mask, valid=owner >= 0,
        select=torch.from_numpy(select), targets=torch.from_numpy(targets), example=owner,
        token_count=sum(len(e) for e in examples), learnt_count=len(where),
        images=torch.from_numpy(np.stack(images)) if images else None, image_at=torch.from_numpy(np.concatenate(image_at)) if images else None,
    )  # fmt: skip


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
