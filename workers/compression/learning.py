"""A short run of learning: a student's, or a pruned model's recovery. `workers.training` is for the long ones."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.compression.spec import CompressSpec
from workers.compression.telling import tell
from workers.moe import ChatTokenizer, Decoder
from workers.protocol import JobError, emit
from workers.training import Batch, Example, Sampler, encode, learning_rate, pack, progress_of, read_records, sampling_weights

BATCH = 24
MAX_LENGTH = 256
WARMUP = 0.05
CLIP_NORM = 1.0
AUX_LOSS = 0.01  # keeps the experts' load even (Switch Transformer §2.2)
REPORT_SECONDS = 1.0

Objective = Callable[[Batch], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Learnt:
    steps: int
    seconds: float
    figures: dict[str, float]  # the last step's


@dataclass(frozen=True)
class Length:
    """So many steps, or so many minutes."""

    steps: int | None
    minutes: float | None

    @classmethod
    def of(cls, spec: CompressSpec, default_minutes: float) -> "Length":
        return cls(spec.steps, None if spec.steps else spec.minutes or default_minutes)


def read_examples(dataset_folder: Path | None, tokenizer: ChatTokenizer, max_length: int) -> list[Example]:
    """What the model was trained on. JobError where there is nothing to learn from."""
    if dataset_folder is None:
        raise JobError("This model was not trained here, so there is no text to learn from. Train from it on a dataset first.")
    examples, _ = encode(read_records(dataset_folder / "train.jsonl"), tokenizer, min(MAX_LENGTH, max_length))
    if not examples:
        raise JobError("The dataset's train.jsonl holds no text to learn from. Process it again, or choose another version.")
    return examples


def learn(
    model: Decoder, examples: list[Example], objective: Objective, *, length: Length, lr: float, seed: int, share: tuple[float, float], message: str,
    after_step: Callable[[], None] | None = None,
) -> Learnt:  # fmt: skip
    """Train all of `model` on `objective`, which gives a loss and figures to tell. `share`: the part of the job's progress that this is.

    `after_step` runs after each step: to hold pruned weights at zero. Raises JobError where the loss is not finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    sampler = Sampler(sampling_weights(examples, {}), seed)
    model.train()
    began = told = time.monotonic()
    step = 0
    figures: dict[str, float] = {}
    while (done := progress_of(step=step, elapsed_seconds=time.monotonic() - began, steps=length.steps, minutes=length.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(lr, done, WARMUP, "linear")
        loss, figures = objective(pack([examples[i] for i in sampler.take(BATCH)]))
        balance = [AUX_LOSS * router.aux_loss for router in model.routers() if router.aux_loss is not None]
        torch.stack([loss, *balance]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if after_step:
            after_step()
        step += 1
        if (now := time.monotonic()) - told >= REPORT_SECONDS:
            told = now
            _tell(figures, step, now - began, length, share, message)
    if not all(value - value == 0 for value in figures.values()):
        raise JobError(f"{message} diverged: its loss is not finite. Try again with fewer steps, or from another version.")
    model.eval()
    return Learnt(step, time.monotonic() - began, figures)


def _tell(figures: dict[str, float], step: int, elapsed: float, length: Length, share: tuple[float, float], message: str) -> None:
    done = max(progress_of(step=step, elapsed_seconds=elapsed, steps=length.steps, minutes=length.minutes), 1e-6)
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    progress = share[0] + (share[1] - share[0]) * min(done, 1.0)
    tell(progress, f"{message}, step {step:,}: {told}", eta_seconds=elapsed / done * (1 - min(done, 1.0)))
    emit("step", step=step, **figures)
