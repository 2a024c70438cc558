"""What people are told while a model trains: progress, steps, and its answer to a held-out question. Only the first rank speaks."""

import time
from collections.abc import Callable

import torch

from workers.moe import ChatTokenizer, Decoder, generate
from workers.protocol import emit
from workers.training.flops import peak_flops
from workers.training.held_out import glance
from workers.training.lora import merged
from workers.training.memory import peak_bytes, used_bytes
from workers.training.pace import Pace
from workers.training.parallel import whole_state
from workers.training.prepare import Prepared, Question
from workers.training.ranks import Ranks
from workers.training.recent import load_max_over_mean, load_min_over_mean, load_shares
from workers.training.spec import TrainSpec
from workers.training.state import Progress

PROGRESS_SECONDS = 1.0
LARGEST_SHARE = 0.03  # of the time that trying questions may take; a slow model is tried less often
LONGEST_ANSWER = 48  # tokens


class Teller:
    def __init__(self, spec: TrainSpec, ranks: Ranks, prepared: Prepared, clock: Callable[[], float] = time.monotonic):
        self._spec, self._ranks, self._clock = spec, ranks, clock
        self._tokenizer: ChatTokenizer = prepared.tokenizer
        self._questions: list[Question] = prepared.questions
        self._tried = 0
        now = clock()
        self._next_progress = now
        self._next_sample = now + spec.sample_every_seconds
        self._next_evaluation = now + spec.evaluate_every_seconds
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(spec.precision, torch.float32)
        # Measured by the first rank; the others have the same device and as many threads.
        self._peak = ranks.size * peak_flops(ranks.device, dtype) if ranks.is_first else 0.0
        self._last_step_event = -spec.log_every_seconds + now
        self._last_logged = -spec.log_every
        self._since = _Since(now)
        self._pace = Pace()

    @property
    def sample_is_due(self) -> bool:
        return bool(self._questions) and self._clock() >= self._next_sample

    @property
    def evaluation_is_due(self) -> bool:
        return bool(self._questions) and self._clock() >= self._next_evaluation

    def note(self, message: str, **data) -> None:
        if self._ranks.is_first:
            emit("note", message=message, **data)

    def step(self, progress: Progress, outcome, share_done: float = 1.0, loss_scale: float = 1.0) -> None:
        """Hear of a step; `outcome` is None after the last one."""
        if not self._ranks.is_first:
            return
        now = self._clock()
        if outcome is not None:
            self._since.add(outcome, loss_scale)
        due = progress.step - self._last_logged >= self._spec.log_every and now - self._last_step_event >= self._spec.log_every_seconds
        if self._since.steps and (due or outcome is None):
            self._emit_step(progress, now)
        if now >= self._next_progress and outcome is not None:
            self._next_progress = now + PROGRESS_SECONDS
            self._emit_progress(progress, share_done)

    def _emit_step(self, progress: Progress, now: float) -> None:
        # The system counts what is used by threads, and may be ahead of its own peak.
        since, used = self._since, used_bytes(self._ranks.device)
        emit(
            "step", step=progress.step, loss=since.loss / since.steps, lr=since.lr, grad_norm=since.grad_norm, loss_scale=since.loss_scale,
            tokens_per_second=since.tokens / max(now - since.began, 1e-9), skipped_steps=progress.skipped_steps, tokens=progress.tokens,
            elapsed=progress.elapsed, memory_bytes=used, peak_memory_bytes=max(used, peak_bytes(self._ranks.device)),
            mfu=since.flops / max(now - since.began, 1e-9) / self._peak, micro_batch=progress.examples_per_step // max(progress.micro_batches, 1),
            expert_load_max_over_mean=load_max_over_mean(progress), expert_load_min_over_mean=load_min_over_mean(progress),
            expert_load=[[round(s, 4) for s in row] for row in load_shares(progress)],
        )  # fmt: skip
        self._since = _Since(now)
        self._last_step_event, self._last_logged = now, progress.step

    def _emit_progress(self, progress: Progress, share_done: float) -> None:
        if self._spec.minutes is not None:
            eta = max(0.0, self._spec.minutes * 60 - progress.elapsed)
        else:
            eta = self._pace.seconds_left(share_done, progress.elapsed)
        emit("progress", progress=share_done, message=f"Step {progress.step:,}", eta_seconds=eta)

    def sample(self, model: Decoder, step: int) -> None:
        """Answer the next question with the weights as they are. All ranks take part."""
        began = self._clock()
        answering = self._plain(model)
        if answering is not None:
            asked = self._questions[self._tried % len(self._questions)]
            self._tried += 1
            answering.eval()
            answer = generate(answering, self._tokenizer, asked.question, LONGEST_ANSWER, asked.image)
            model.train()
            emit("sample", step=step, question=asked.question, answer=answer, reference=asked.reference)
        took = self._clock() - began
        self._next_sample = self._clock() + max(self._spec.sample_every_seconds, took / LARGEST_SHARE)

    def evaluate(self, model: Decoder, step: int) -> None:
        """Loss and BLEU on held-out questions. All ranks take part."""
        began = self._clock()
        answering = self._plain(model)
        if answering is not None:
            answering.eval()
            found = glance(answering, self._tokenizer, self._questions)
            model.train()
            emit("evaluation", step=step, **found)
        self._next_evaluation = self._clock() + max(self._spec.evaluate_every_seconds, (self._clock() - began) / LARGEST_SHARE)

    def _plain(self, model: Decoder) -> Decoder | None:
        """The model itself, or where it is sharded a copy from all ranks; None on the ranks that do not speak."""
        sharded = self._ranks.size > 1 and (self._spec.zero_stage >= 2 or self._spec.expert_parallel_size > 1)
        if not sharded:
            return model if self._ranks.is_first else None
        return gather(model, self._ranks)


def gather(model: Decoder, ranks: Ranks) -> Decoder | None:
    """A plain copy on the first rank's CPU of a model that may be spread over the ranks. All ranks take part."""
    state = merged(model, whole_state(model))
    if not ranks.is_first:
        return None
    with torch.device("meta"):
        copy = Decoder(model.config)
    copy.load_state_dict(state, strict=True, assign=True)
    if copy.config.tie_embeddings:
        copy.head.weight = copy.embedding.weight
    copy.rebuild_tables()
    return copy.eval()


class _Since:
    """What happened since the last step event."""

    def __init__(self, began: float):
        self.began = began
        self.steps = self.tokens = 0
        self.loss = self.lr = self.grad_norm = self.flops = 0.0
        self.loss_scale = 1.0

    def add(self, outcome, loss_scale: float) -> None:
        self.steps += 1
        self.tokens += outcome.tokens
        self.loss += outcome.loss
        self.flops += outcome.flops
        self.lr, self.grad_norm, self.loss_scale = outcome.lr, outcome.grad_norm, loss_scale
