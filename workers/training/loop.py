"""The training loop, top to bottom: a step, what is told of it, and what happens between two steps."""

import gc
import math
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from workers.protocol import JobError, emit
from workers.training.again import micro_batches_asked_for, start_again
from workers.training.average import Average
from workers.training.batches import Batch, Sampler
from workers.training.curriculum import Stage, stage_at, stages_of
from workers.training.domain_routing import DomainRouting
from workers.training.expert_parallel import average_expert_gradients
from workers.training.flops import Flops
from workers.training.health import PATIENCE, WINDOW, Diverged, OutOfMemory, is_leap, memory_watched
from workers.training.parallel import gradients_stay_here, make_optimizer, parallelize
from workers.training.precision import Precision
from workers.training.prepare import Prepared
from workers.training.ranks import Ranks
from workers.training.recent import remember
from workers.training.schedule import learning_rate, progress_of
from workers.training.spec import TrainSpec
from workers.training.state import Checkpoints, Progress
from workers.training.telling import Teller

SMALLEST_SCALE = 2.0**-8  # an FP16 loss scale below it means that the loss itself is not finite


@dataclass(frozen=True)
class Outcome:
    """One step, over all ranks."""

    loss: float  # mean over the learnt tokens
    tokens: int
    grad_norm: float
    lr: float
    taken: bool
    flops: float = 0.0  # that it needed: workers.training.flops


class Loop:
    def __init__(self, spec: TrainSpec, ranks: Ranks, prepared: Prepared):
        self.spec, self.ranks = spec, ranks
        self.model = prepared.model
        self.stages = stages_of(spec, prepared, ranks, min(spec.max_length, self.model.config.max_seq_len))
        self.module = parallelize(self.model, spec, ranks)
        self.optimizer = make_optimizer(self.module, spec, ranks)
        self.precision = Precision(spec.precision, ranks.device, differs=spec.expert_parallel_size > 1)
        self.stage: Stage | None = None  # the one that this process has begun
        self.sampler = Sampler(self.stages[0].weights, spec.seed)
        self.routers = self.model.routers()
        self.domain_routing = DomainRouting(spec.domain_routing, prepared.examples, self.routers)
        self.average = Average(self.model, spec.ema_decay)
        self.flops = Flops(self.model)
        self.checkpoints = Checkpoints(spec.work_folder, ranks, spec.zero_stage, spec.checkpoint_every_seconds, self.average.parts)
        self.teller = Teller(spec, ranks, prepared)
        self.progress = Progress(examples_per_step=spec.micro_batch * spec.accum_steps * ranks.size, micro_batches=spec.accum_steps * ranks.size)
        self._unusual = 0  # steps in a row whose loss leapt
        self._began = 0.0

    def run(self) -> Progress:
        """From the last checkpoint, or from the beginning, to the end. JobError where it diverges twice."""
        if resumed := self.checkpoints.load(self.model, self.optimizer, self.precision):
            self._take_up(resumed)
            if resumed.step:
                self.teller.note(f"Resumed from step {resumed.step:,}.", step=resumed.step)
        else:
            self._save()  # where to go back to, should the first steps diverge
        if asked := micro_batches_asked_for(self.spec.work_folder):
            self._share_out(max(asked, self.progress.micro_batches))
        self._began = time.monotonic() - self.progress.elapsed
        while self.share_done < 1:
            try:
                outcome = self.step()
            except Diverged as diverged:
                self._go_back(diverged)
                continue
            except OutOfMemory as full:
                self._use_smaller_batches(full)
                continue
            self._between_steps(outcome)
        self.teller.step(self.progress, outcome=None)
        self.average.put_in()
        return self.progress

    @property
    def share_done(self) -> float:
        return progress_of(step=self.progress.step, elapsed_seconds=self.progress.elapsed, steps=self.spec.steps, minutes=self.spec.minutes)

    # -- one step

    def step(self) -> Outcome:
        """This rank's micro-batches, one step of the optimizer. Raises Diverged and OutOfMemory."""
        spec, done = self.spec, self.share_done
        stage = self._stage_at(done)
        share = learning_rate(self.progress.lr_factor, done, spec.warmup, spec.schedule) * stage.lr
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        with memory_watched(touches_weights=False):
            loss, tokens, learnt, load, domains = self._gradients(stage)
        self._look_at(loss)
        with memory_watched(touches_weights=True):
            grad_norm, taken = self.precision.step(self.optimizer, self.model, spec.clip_norm)
        self.optimizer.zero_grad(set_to_none=True)
        if taken:
            self.average.update(self.progress.step)
        self._after(loss, tokens, learnt, load, taken)
        if taken:
            self.domain_routing.remember(self.progress, domains)
        flops = self.flops.of(tokens, learnt, self.progress.examples_per_step)
        return Outcome(loss, tokens, grad_norm, spec.lr * share, taken, flops)

    def _gradients(self, stage: Stage) -> tuple[float, int, int, list[list[float]], list[list[float]]]:
        """Forward and backward of one step. Mean loss, tokens, learnt tokens, experts' load, and that by domain; over all ranks."""
        batches, learnt, all_tokens = self._batches(stage)
        parts = self.progress.micro_batches
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        load = [torch.zeros(r.n_experts, dtype=torch.float64, device=self.ranks.device) for r in self.routers]
        domains: list[Tensor] = []
        for number, batch in enumerate(batches, start=1):
            with gradients_stay_here(self.module) if number < len(batches) else nullcontext():
                mean, balance = self.losses(stage, batch)
                # Ranks are averaged over, micro-batches divided by their number; a micro-batch with more learnt tokens than
                # others weighs more, so that the sum is the mean over all tokens, as of one large batch.
                apart = self.spec.domain_routing * self.domain_routing.loss(batch, self.progress) * (batch.token_count * parts / all_tokens)
                self.precision.backward((mean * (batch.learnt_count * parts / learnt) + balance + apart) / len(batches))
            loss_sum += mean.detach() * batch.learnt_count
            for so_far, router in zip(load, self.routers, strict=True):
                so_far.add_(cast(Tensor, router.load))
            counted = self.domain_routing.count(batch)
            domains = [before + now for before, now in zip(domains, counted, strict=True)] if domains else counted
        average_expert_gradients(self.model, self.ranks)
        loss, rows = self._over_ranks(loss_sum, [*load, *domains], learnt)
        return loss, all_tokens, learnt, rows[: len(load)], rows[len(load) :]

    def logits(self, batch: Batch) -> Tensor:
        with self.precision.autocast():
            return self.module(batch.tokens, **batch.inputs)

    def losses(self, stage: Stage, batch: Batch) -> tuple[Tensor, Tensor]:
        """The objective's mean over what the batch teaches (learnt tokens, or pairs), and what the routers add for balance."""
        mean = stage.objective.mean(self.logits(batch), batch)
        balance = mean.new_zeros(())
        for router in self.routers:
            balance = balance + self.spec.aux_loss * cast(Tensor, router.aux_loss) + self.spec.z_loss * cast(Tensor, router.z_loss)
        return mean, balance

    def _stage_at(self, done: float) -> Stage:
        """The stage that the run is in. One that this process has not begun begins here: at its start, or where the run was resumed."""
        number, progress = stage_at(self.stages, done), self.progress
        if self.stage is not self.stages[number]:
            fresh = number != progress.stage or not progress.step
            if number != progress.stage:
                progress.stage, progress.sampler = number, (0, 0)
                progress.recent_losses = []  # another stage's losses are another's
            self.stage = self.stages[number]
            self.sampler = Sampler(self.stage.weights, self.spec.seed + number)
            self.sampler.position = progress.sampler
            self.stage.objective.begin(self.logits, fresh)
            if len(self.stages) > 1 and fresh:
                self.teller.note(f"Stage {number + 1} of {len(self.stages)} begins: {self.stage.kind}.", step=progress.step)
        return self.stage

    def _batches(self, stage: Stage) -> tuple[list[Batch], int, int]:
        """This rank's micro-batches, and the numbers of learnt and of all tokens in those of all ranks: each draws the same examples."""
        chosen = [stage.units[i] for i in self.sampler.take(self.progress.examples_per_step)]
        learnt, tokens = sum(e.learnt_count for e in chosen), sum(len(e) for e in chosen)
        places = np.array_split(np.arange(len(chosen)), self.progress.micro_batches)
        mine = range(self.ranks.rank, len(places), self.ranks.size)
        return [self._batch(stage, [chosen[i] for i in places[number]], number) for number in mine], learnt, tokens

    def _batch(self, stage: Stage, part: list[Any], number: int) -> Batch:
        """Chance is the same for the same step and micro-batch, however many ranks share the work, and when a run is resumed."""
        batch, packed = stage.objective.batch(part, np.random.default_rng((self.spec.seed, self.progress.step, number)))
        return self.domain_routing.mark(batch, packed).to(self.ranks.device)

    def _over_ranks(self, loss_sum: Tensor, counts: list[Tensor], learnt: int) -> tuple[float, list[list[float]]]:
        """One exchange for all that a step's ranks must know of each other: the mean loss, and each of `counts` summed."""
        both = self.ranks.sum(torch.cat([loss_sum.reshape(1), *counts]))
        (total,), *rows = (part.tolist() for part in both.split([1, *(len(row) for row in counts)]))
        return total / learnt, rows

    def _after(self, loss: float, tokens: int, learnt: int, load: list[list[float]], taken: bool) -> None:
        progress = self.progress
        if not taken:
            if not self.precision.scales:
                raise Diverged(f"the gradients were not finite at step {progress.step + 1:,}")
            progress.skipped_steps += 1
            if self.precision.loss_scale < SMALLEST_SCALE:
                raise Diverged(f"no loss scale keeps FP16 finite at step {progress.step + 1:,}")
        else:
            remember(progress, loss, load)
            progress.recent_losses = [*progress.recent_losses, loss][-WINDOW:]
            for router, row in zip(self.routers, load, strict=True):
                if router.sigmoid and router.weight.requires_grad:  # not where it is frozen, beside adapters
                    router.move_bias(torch.tensor(row, device=self.ranks.device), self.spec.bias_rate)
        progress.step += 1
        progress.tokens += tokens
        progress.learnt_tokens += learnt
        progress.sampler = self.sampler.position

    def _look_at(self, loss: float) -> None:
        """Raises Diverged. All ranks see the same loss, so all decide alike."""
        finite = math.isfinite(loss)
        if not finite and self.precision.scales:
            return  # the loss scale answers it
        self._unusual = self._unusual + 1 if not finite or is_leap(loss, self.progress.recent_losses, self.spec.spike_deviations) else 0
        if not finite:
            raise Diverged(f"the loss became {loss} at step {self.progress.step + 1:,}")
        if self._unusual >= PATIENCE:
            usual = statistics.median(self.progress.recent_losses)
            raise Diverged(f"the loss leapt from about {usual:.3g} to {loss:.3g} at step {self.progress.step + 1:,}")

    # -- between two steps

    def _between_steps(self, outcome: Outcome) -> None:
        """The first rank's clock decides for all."""
        mine = (time.monotonic() - self._began, self.checkpoints.is_due, self.teller.sample_is_due, self.teller.evaluation_is_due)
        self.progress.elapsed, save, sample, evaluate = self._ask_first_rank(*mine)
        self.teller.step(self.progress, outcome, self.share_done, self.precision.loss_scale)
        if sample or evaluate:
            with self.average.in_place():  # what would be published
                if sample:
                    self.teller.sample(self.model, self.progress.step)
                if evaluate:
                    self.teller.evaluate(self.model, self.progress.step)
        if save and not self._unusual:
            self._save()

    def _ask_first_rank(self, elapsed: float, *due: bool) -> Any:
        mine = [elapsed, *map(float, due)] if self.ranks.is_first else [0.0] * (1 + len(due))
        if self.ranks.size > 1:
            mine = self.ranks.sum(torch.tensor(mine, dtype=torch.float64, device=self.ranks.device)).tolist()
        return mine[0], *map(bool, mine[1:])

    def _save(self) -> None:
        self.checkpoints.save(self.progress, self.model, self.optimizer, self.precision)

    def _take_up(self, progress: Progress) -> None:
        self.progress, self.stage, self._unusual = progress, None, 0
        self._share_out(progress.micro_batches)

    def _share_out(self, micro_batches: int) -> None:
        """At least so many, and as many on each rank: the same examples a step, whoever shares them. JobError where there are too few."""
        progress, size = self.progress, self.ranks.size
        progress.micro_batches = math.lcm(micro_batches, size)
        if progress.micro_batches > progress.examples_per_step:
            raise JobError(
                f"A step of {progress.examples_per_step:,} examples cannot be shared by {size} ranks in {progress.micro_batches:,} micro-batches. "
                "Use fewer ranks, a smaller model, or begin anew with a larger batch."
            )

    def _go_back(self, diverged: Diverged) -> None:
        """Once, to the last checkpoint before it, at half the learning rate and without the batches since; time that passed has passed."""
        elapsed, seen, skipped, stage = self.progress.elapsed, self.progress.lr_factor, self.sampler.position, self.progress.stage
        reached = self.progress.step + 1
        if seen < 1:
            raise JobError(
                f"Training diverged twice: {diverged}, at half the learning rate too. Lower lr (now {self.spec.lr}) or use precision fp32."
            )
        # The first loss that was unusual speaks of the weights one step before it: a checkpoint of those is no good one.
        failed_at = reached - max(self._unusual - 1, 0)
        before = self._load(before=failed_at - 2)
        if before.stage == stage:
            before.sampler = skipped
        self.progress.elapsed, self.progress.lr_factor = max(elapsed, before.elapsed), 0.5
        batches = reached - before.step
        self._save()  # in place of those after it, which may be broken
        self.teller.note(
            f"Training diverged: {diverged}. It goes on from step {before.step:,} with half the learning rate, "
            f"without the {batches:,} batches since.", step=before.step, skipped_batches=batches,
        )  # fmt: skip

    def _use_smaller_batches(self, full: OutOfMemory) -> None:
        """Twice as many micro-batches of half the size. Where ranks wait for each other, all must start again: this one says with what."""
        full.__context__ = None  # its frames hold on to the step's tensors
        self._free()
        progress, size = self.progress, self.ranks.size
        wanted = 2 * progress.micro_batches
        if wanted > progress.examples_per_step:
            raise JobError(
                f"Out of memory with one example at a time ({full}). Use a smaller preset, a smaller max_length, activation_checkpointing, "
                "a higher zero_stage on more ranks, or a machine with more memory."
            )
        note = {"micro_batch": progress.examples_per_step // wanted, "accum_steps": wanted // size, "step": progress.step}
        emit(  # whichever rank it is
            "note", message=f"Out of memory ({full}). It goes on with {note['micro_batch']} examples at a time and {note['accum_steps']} accumulation steps: "
            "the same batch.", **note,
        )  # fmt: skip
        if size > 1:
            start_again(self.spec.work_folder, wanted)
        if full.weights_touched:
            elapsed = progress.elapsed
            self._load()
            self.progress.elapsed = max(elapsed, self.progress.elapsed)
        self.sampler.position = self.progress.sampler
        self._share_out(wanted)

    def _load(self, before: int | None = None) -> Progress:
        self.optimizer.zero_grad(set_to_none=True)
        progress = self.checkpoints.load(self.model, self.optimizer, self.precision, before)
        assert progress is not None  # there is one from before the first step
        self._take_up(progress)
        return progress

    def _free(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for router in self.routers:
            router.aux_loss = router.z_loss = router.shares = None  # they hold on to the step's graph
        gc.collect()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
