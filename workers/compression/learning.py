"""A short run of learning: a student's, or a pruned model's recovery, by the recipe of `workers.training` (Muon for matrices, AdamW beside it).

What it ends with is a moving average of the weights: that is good before the learning rate has fallen, so that a run may end as soon as it has
learnt enough. It keeps checkpoints in the job's work folder and goes on from the newest one: the same spec again ends with the same model.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workers.compression.goal import Goal
from workers.compression.spec import CompressSpec
from workers.compression.telling import tell
from workers.moe import ChatTokenizer, Decoder, ModelConfig
from workers.protocol import JobError, emit
from workers.training import (
    Average,
    Batch,
    Checkpoints,
    Example,
    Muon,
    Precision,
    Progress,
    Ranks,
    Sampler,
    as_conversations,
    encode,
    learning_rate,
    muon_groups,
    pack,
    progress_of,
    read_records,
    sampling_weights,
)  # fmt: skip

BATCH = 32
MAX_LENGTH = 256
WARMUP = 0.05
CLIP_NORM = 1.0
AUX_LOSS = 0.01  # keeps the experts' load even (Switch Transformer §2.2)
CONVERSATIONS = 0.25  # share of the questions that follow another one: as the teacher was trained, so that earlier turns do not confuse
REPORT_SECONDS = 1.0
CHECKPOINT_SECONDS = 15.0
CURVE_POINTS = 60  # most that are kept of a run's losses
AVERAGE_DECAY = 0.98  # of the weights: about the last fifty steps
TRIALS = 12  # how often, in a whole run, it is asked whether enough is learnt

# A batch, and the examples that it is made of, by their places among all → the loss, and figures to tell.
Objective = Callable[[Batch, Sequence[int]], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Rates:
    """Peak learning rates: Muon's for the matrices between hidden states, AdamW's for all else."""

    lr: float
    matrix_lr: float


@dataclass(frozen=True)
class Learnt:
    steps: int
    seconds: float
    figures: dict[str, float]  # the last step's
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # step, seconds, loss: means between two points
    trials: list[tuple[int, float, float]] = field(default_factory=list)  # step, seconds, BLEU of held-out questions


@dataclass(frozen=True)
class Length:
    """So many steps, or so many minutes."""

    steps: int | None
    minutes: float | None

    @classmethod
    def of(cls, spec: CompressSpec, default_minutes: float) -> "Length":
        return cls(spec.steps, None if spec.steps else spec.minutes or default_minutes)

    def done(self, step: int, seconds: float) -> float:
        """The part that is done, 0 to 1."""
        return progress_of(step=step, elapsed_seconds=seconds, steps=self.steps, minutes=self.minutes)


def read_examples(dataset_folder: Path | None, tokenizer: ChatTokenizer, config: ModelConfig) -> list[Example]:
    """What the model was trained on. JobError where there is nothing to learn from."""
    if dataset_folder is None:
        raise JobError("This model was not trained here, so there is no text to learn from. Train from it on a dataset first.")
    examples, _ = encode(read_records(dataset_folder / "train.jsonl"), tokenizer, min(MAX_LENGTH, config.max_seq_len), config)
    if not examples:
        raise JobError("The dataset's train.jsonl holds no text to learn from. Process it again, or choose another version.")
    return examples


def learn(
    model: Decoder, examples: Sequence[Example], objective: Objective, *, length: Length, rates: Rates, seed: int, share: tuple[float, float],
    message: str, work_folder: Path | None = None, after_step: Callable[[], None] | None = None, goal: Goal | None = None,
) -> Learnt:  # fmt: skip
    """Train all of `model` on `objective`, which gives a loss and figures to tell. `share`: the part of the job's progress that this is.

    `work_folder` keeps the checkpoints, and one that lies there is gone on from. `after_step` runs after each step: to hold pruned weights at
    zero. With a `goal` it ends as soon as that is reached. Raises JobError where the loss is not finite.
    """
    run = _Run(model, examples, rates, seed, work_folder)
    model.train()
    told = time.monotonic()
    figures: dict[str, float] = {}
    recent: list[float] = []
    curve: list[tuple[int, float, float]] = []
    trials: list[tuple[int, float, float]] = []
    points = int(length.done(run.progress.step, run.progress.elapsed) * CURVE_POINTS)  # a run that is taken up has some behind it
    tried = int(length.done(run.progress.step, run.progress.elapsed) * TRIALS)
    while (done := length.done(run.progress.step, run.progress.elapsed)) < 1:
        figures = run.step(objective, done)
        if after_step:
            after_step()
        run.average.update(run.progress.step - 1)
        recent.append(figures["loss"])
        progress = run.progress
        if (reached := int(length.done(progress.step, progress.elapsed) * CURVE_POINTS)) > points:
            points = reached
            curve.append((progress.step, round(progress.elapsed, 2), sum(recent) / len(recent)))
            recent.clear()
        if (now := time.monotonic()) - told >= REPORT_SECONDS:
            told = now
            _tell(figures, progress, length, share, message)
        run.keep()
        if goal and (reached := int(length.done(progress.step, progress.elapsed) * TRIALS)) > tried:
            tried = reached
            with run.average.in_place():
                bleu = goal.bleu(model.eval())
            model.train()
            trials.append((progress.step, round(progress.elapsed, 2), bleu))
            if bleu >= goal.least:
                break
    run.average.put_in()
    if not all(value - value == 0 for value in figures.values()):
        raise JobError(f"{message} diverged: its loss is not finite. Try again with fewer steps, or from another version.")
    model.eval()
    return Learnt(run.progress.step, run.progress.elapsed, figures, curve, trials)


class _Run:
    """The optimizer, the order of examples and the checkpoints of one run."""

    def __init__(self, model: Decoder, examples: Sequence[Example], rates: Rates, seed: int, work_folder: Path | None):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        self._model, self._examples, self._seed = model, examples, seed
        self._max_length = min(MAX_LENGTH, model.config.max_seq_len)
        device = torch.device("cpu")
        self._precision = Precision("bf16", device)
        self._optimizer = Muon(muon_groups(model.named_parameters(), lr=rates.lr, matrix_lr=rates.matrix_lr))
        self._sampler = Sampler(sampling_weights(examples, {}), seed)
        self.average = Average(model, AVERAGE_DECAY)
        ranks = Ranks(0, 1, 1, device)
        self._checkpoints = Checkpoints(work_folder, ranks, 0, CHECKPOINT_SECONDS, self.average.parts) if work_folder else None
        self.progress = Progress()
        if self._checkpoints and (found := self._checkpoints.load(model, self._optimizer, self._precision)):
            self.progress = found
            self._sampler.position = found.sampler
        self._began = time.monotonic() - self.progress.elapsed

    def step(self, objective: Objective, done: float) -> dict[str, float]:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(group["peak_lr"], done, WARMUP, "linear")
        chosen = self._sampler.take(BATCH)
        generator = np.random.default_rng((self._seed, self.progress.step))
        batch = pack(as_conversations([self._examples[i] for i in chosen], CONVERSATIONS, generator, self._max_length))
        with self._precision.autocast():
            loss, figures = objective(batch, chosen)
        balance = [AUX_LOSS * router.aux_loss for router in self._model.routers() if router.aux_loss is not None]
        torch.stack([loss, *balance]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.elapsed = time.monotonic() - self._began
        self.progress.sampler = self._sampler.position
        return figures

    def keep(self) -> None:
        """Write a checkpoint, where one is due."""
        if self._checkpoints and self._checkpoints.is_due:
            self._checkpoints.save(self.progress, self._model, self._optimizer, self._precision)


def _tell(figures: dict[str, float], at: Progress, length: Length, share: tuple[float, float], message: str) -> None:
    done = min(max(length.done(at.step, at.elapsed), 1e-6), 1.0)
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    tell(share[0] + (share[1] - share[0]) * done, f"{message}, step {at.step:,}: {told}", eta_seconds=at.elapsed / done * (1 - done))
    emit("step", step=at.step, **figures)
