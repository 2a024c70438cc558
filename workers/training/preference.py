"""Learning from what people preferred: DPO (Rafailov et al. 2023) from pairs, KTO (Ethayarajh et al. 2024) from single judgements.

The reference is the model as the stage finds it: a run's parent, or what the stages before it made. Its log-probabilities are
worked out once, when the stage begins, and kept in the work folder: no second model is held, and a resumed run goes on with
the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.moe.tokenizer import ChatTokenizer
from workers.protocol import JobError
from workers.training.batches import NO_TARGET, Batch, pack
from workers.training.examples import Example, read_records
from workers.training.objectives import Forward
from workers.training.ranks import Ranks

FILE = "preferences.jsonl"
REFERENCE_BATCH = 64  # sequences in one forward of the reference


@dataclass(frozen=True)
class Unit:
    """Two sequences that are judged together. `number`: its place among all units, for the reference's log-probabilities.

    Of a pair: the answer chosen and the one rejected. Of a judged answer: itself, and another question's answer to its question,
    with which KTO estimates how far the policy has moved.
    """

    number: int
    first: Example
    second: Example
    good: bool = True
    weight: float = 1.0
    learnt_count: int = 1  # losses are means over units

    def __len__(self) -> int:
        return len(self.first) + len(self.second)


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(Batch):
    """The firsts of n units, then the seconds, packed. `reference`: (2 n,) log-probabilities; `good`: (n,) bool."""

    reference: Tensor
    good: Tensor


def dpo_loss(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float) -> Tensor:
    """-log σ(β · ((π_chosen − ref_chosen) − (π_rejected − ref_rejected))), of log-probabilities of whole answers: (pairs,). DPO eq. 7."""
    return -F.logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


def kto_loss(policy: Tensor, reference: Tensor, good: Tensor, divergence: Tensor, beta: float, weight_good: float, weight_bad: float) -> Tensor:
    """λ (1 − σ(±β · (log-ratio − divergence))), plus where the answer is good, minus where it is bad: (answers,). KTO eq. 8.

    `divergence`: the batch's estimate of KL(policy ‖ reference), at least 0, through which no gradient flows.
    """
    sign = good.to(policy.dtype) * 2 - 1
    weight = torch.where(good, weight_good, weight_bad)
    return weight * (1 - torch.sigmoid(sign * beta * (policy - reference - divergence)))


def log_probs(logits: Tensor, batch: Batch, count: int) -> Tensor:
    """Of each of the batch's `count` sequences, the log-probability of its learnt tokens: (count,) float32."""
    by_token = -F.cross_entropy(logits.float(), batch.targets, ignore_index=NO_TARGET, reduction="none")
    return by_token.new_zeros(count).index_add(0, _owners(batch), by_token)


def _owners(batch: Batch) -> Tensor:
    """(selected,): the sequence that each selected position is of; padding's token has no loss, so its owner does not matter."""
    return batch.example.reshape(-1)[batch.select].clamp(min=0)


class Preference:
    """The objective of a preference stage. `method`: "dpo" or "kto". See `objectives.Objective`."""

    def __init__(self, units: Sequence[Unit], method: str, *, beta: float, likelihood: float, ranks: Ranks, reference_file: Path):
        self._units, self._method, self._beta, self._likelihood = units, method, beta, likelihood
        self._ranks, self._file = ranks, reference_file
        self._reference = torch.empty(0)
        good = sum(unit.good for unit in units)
        bad = len(units) - good
        # The rarer side weighs more, so that both weigh the same in all (KTO §4.2: the ratio is best between 1 and 4/3).
        self._weight_good, self._weight_bad = (max(1.0, bad / good), max(1.0, good / bad)) if good and bad else (1.0, 1.0)

    def begin(self, forward: Forward, fresh: bool) -> None:
        if fresh or not self._file.exists():
            found = self._ask(forward)
            if self._ranks.is_first:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._file.with_suffix(".tmp")
                save_file({"log_probs": found}, temporary)
                temporary.replace(self._file)
            self._ranks.barrier()
        self._reference = load_file(self._file)["log_probs"].to(self._ranks.device)

    def batch(self, units: Sequence[Unit], generator: np.random.Generator) -> tuple[PreferenceBatch, list[Example]]:
        sequences = [*(unit.first for unit in units), *(unit.second for unit in units)]
        numbers = torch.tensor([unit.number for unit in units])
        reference = self._reference.cpu()[:, numbers].reshape(-1)
        good = torch.tensor([unit.good for unit in units])
        return PreferenceBatch(**{**vars(pack(sequences)), "learnt_count": len(units)}, reference=reference, good=good), sequences

    def mean(self, logits: Tensor, batch: Batch) -> Tensor:
        assert isinstance(batch, PreferenceBatch)
        first, second = log_probs(logits, batch, len(batch.reference)).chunk(2)
        reference_first, reference_second = batch.reference.chunk(2)
        if self._method == "kto":
            divergence = (second - reference_second).detach().mean()
            divergence = (self._ranks.sum(divergence) / self._ranks.size).clamp(min=0)
            return kto_loss(first, reference_first, batch.good, divergence, self._beta, self._weight_good, self._weight_bad).mean()
        loss = dpo_loss(first, second, reference_first, reference_second, self._beta)
        if self._likelihood:
            loss = loss - self._likelihood * first / self._lengths(batch)
        return loss.mean()

    @staticmethod
    def _lengths(batch: PreferenceBatch) -> Tensor:
        """(n,): learnt tokens of the chosen answers."""
        counted = (batch.targets != NO_TARGET).float()
        return counted.new_zeros(len(batch.reference)).index_add(0, _owners(batch), counted).chunk(2)[0]

    @torch.no_grad()
    def _ask(self, forward: Forward) -> Tensor:
        """(2, units): the log-probabilities of all firsts and seconds under the model as it is, the work shared by the ranks."""
        sequences = [*(unit.first for unit in self._units), *(unit.second for unit in self._units)]
        found = torch.zeros(len(sequences), dtype=torch.float64, device=self._ranks.device)
        ranks, stride = self._ranks, REFERENCE_BATCH * self._ranks.size
        for start in range(ranks.rank * REFERENCE_BATCH, -(-len(sequences) // stride) * stride, stride):
            # A rank whose part is empty asks all the same: the others wait for it where the model is sharded.
            part = sequences[start : start + REFERENCE_BATCH]
            batch = pack(part or sequences[:1]).to(ranks.device)
            answered = log_probs(forward(batch), batch, len(part) or 1)
            found[start : start + len(part)] = answered[: len(part)].double()
        return ranks.sum(found).float().view(2, -1).cpu()


# -- from the dataset


def read_units(dataset_folder: Path, method: str, tokenizer: ChatTokenizer, max_length: int, seed: int) -> list[Unit]:
    """All pairs, or all judged answers. JobError where the dataset has none that can be learnt from."""
    path = dataset_folder / FILE
    rows = list(read_records(path)) if path.exists() else []
    units = _pairs(rows, tokenizer) if method == "dpo" else _judged(rows, tokenizer, seed)
    units = [unit for unit in units if max(len(unit.first), len(unit.second)) <= max_length]
    if not units:
        what = (
            "two answers to one question of which one was rated higher, or a corrected one" if method == "dpo" else "answers rated 4 or 5, or 1 or 2"
        )
        raise JobError(f"{method.upper()} learns from ratings: {what}. This dataset has none; make one from the feedback, and process it.")
    if method == "kto" and len({unit.good for unit in units}) < 2:
        raise JobError(
            "KTO needs answers that were found good (4 or 5, or a correction) and answers that were found bad (1 or 2). Only one kind is here."
        )
    return [replace(unit, number=number) for number, unit in enumerate(units)]


def _pairs(rows: list[dict[str, Any]], tokenizer: ChatTokenizer) -> list[Unit]:
    example = _encoder(tokenizer)
    return [
        Unit(0, example(row["question"], row["chosen"], row), example(row["question"], row["rejected"], row))
        for row in rows
        if row.get("kind") == "pair"
    ]


def _judged(rows: list[dict[str, Any]], tokenizer: ChatTokenizer, seed: int) -> list[Unit]:
    judged = [row for row in rows if row.get("kind") == "judged"]
    example = _encoder(tokenizer)
    order = np.random.default_rng(seed).permutation(len(judged))
    units = []
    for place, index in enumerate(order):
        row = judged[index]
        others = (judged[order[(place + step) % len(order)]] for step in range(1, len(order)))
        other = next((o for o in others if o["question"] != row["question"]), row)
        units.append(Unit(0, example(row["question"], row["answer"], row), example(row["question"], other["answer"], row), bool(row["good"])))
    return units


def _encoder(tokenizer: ChatTokenizer) -> Callable[[str, str, dict[str, Any]], Example]:
    def encoded(question: str, answer: str, row: dict[str, Any]) -> Example:
        ids, learnt = tokenizer.encode_example(question, answer)
        return Example(np.array(ids, np.int32), np.array(learnt, bool), str(row.get("domain") or ""), 1.0)

    return encoded
