"""What a teacher would say, remembered: each example is shown to it once, however often its student reads it.

Of the vocabulary only the likeliest tokens are kept, with their probabilities; all others are one event more, so that nothing is renormalised
(a truncated teacher would make its student too sure: Anshumann et al. 2025, "Sparse Logit Sampling"). In a conversation the teacher's words are
those that it says to the question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.moe import Decoder
from workers.training import Batch, Example, pack

LIKELIEST = 16  # tokens that are remembered at each place
SMALLEST = 1e-8  # probability that is taken for none


@dataclass(frozen=True)
class Wanted:
    """At each learnt token of a batch, the teacher's likeliest. `ids`: (learnt, k) int64; `log_p`: (learnt, k), the logarithms of their probabilities."""

    ids: Tensor
    log_p: Tensor

    def divergence(self, log_q: Tensor) -> Tensor:
        """KL(teacher ‖ student) in nats at each place, of the likeliest and of "another". `log_q`: (learnt, vocab), log-probabilities → (learnt,)."""
        found = log_q.gather(1, self.ids)
        p = self.log_p.exp()
        rest_p = (1 - p.sum(1)).clamp(min=SMALLEST)
        rest_q = (1 - found.exp().sum(1)).clamp(min=SMALLEST)
        return (p * (self.log_p - found)).sum(1) + rest_p * (rest_p / rest_q).log()


class Teacher:
    """`examples`: those that batches are made of; a batch names them by their place among these.

    `temperature`: its logits are divided by this, so that above 1 it says more of what it thinks unlikely (Hinton et al. 2015 §2).
    """

    def __init__(self, model: Decoder, examples: Sequence[Example], temperature: float = 1.0):
        self._model, self._examples, self.temperature = model, examples, temperature
        self._said: dict[int, Wanted] = {}

    @torch.no_grad()
    def wanted(self, batch: Batch, chosen: Sequence[int]) -> Wanted:
        """For the learnt tokens of `batch`, which holds the examples `chosen`, in order, each alone or behind others of a conversation."""
        if new := [number for number in dict.fromkeys(chosen) if number not in self._said]:
            self._ask(new)
        ids = torch.cat([self._said[number].ids for number in chosen])
        log_p = torch.cat([self._said[number].log_p for number in chosen])
        # The batch's rows are filled longest first; within an example the order is its own.
        place = batch.owners.argsort(stable=True).argsort()
        return Wanted(ids[place], log_p[place])

    def _ask(self, numbers: Sequence[int]) -> None:
        batch = pack([self._examples[number] for number in numbers])
        logits = self._model(batch.tokens, **batch.inputs).float()[: batch.learnt_count]
        log_p, ids = F.log_softmax(logits / self.temperature, -1).topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
        owners = batch.owners
        for place, number in enumerate(numbers):
            mine = owners == place
            self._said[number] = Wanted(ids[mine], log_p[mine])
