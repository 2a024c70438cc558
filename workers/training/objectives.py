"""What a step learns from, and its loss: the loop knows units, batches and a mean; an objective says what they are."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from workers.training.batches import Batch, as_conversations, pack
from workers.training.examples import Example

Forward = Callable[[Batch], Tensor]  # the logits of a batch's selected positions: (selected, vocab)


class Objective(Protocol):
    """`Unit`s are what the sampler draws; each has a `learnt_count`, the number of things over which the loss is a mean."""

    def begin(self, forward: Forward, fresh: bool) -> None:
        """Before the first step with it. `fresh`: the model is as it was when the stage began, else the run was resumed within it."""

    def batch(self, units: Sequence[Any], generator: np.random.Generator) -> tuple[Batch, Sequence[Example]]:
        """One micro-batch, and the examples that it was packed from."""

    def mean(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss over the batch's `learnt_count`."""


class CrossEntropy:
    """The likelihood of what is to be learnt: answers, or all of a document."""

    def __init__(self, conversations: float, max_length: int):
        self._conversations, self._max_length = conversations, max_length

    def begin(self, forward: Forward, fresh: bool) -> None:
        pass

    def batch(self, units: Sequence[Example], generator: np.random.Generator) -> tuple[Batch, Sequence[Example]]:
        joined = as_conversations(units, self._conversations, generator, self._max_length)
        return pack(joined), joined

    def mean(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits.float(), batch.targets)
