"""The loop in this process: what one step computes, and what it does when numbers break."""

import json

import numpy as np
import pytest
import torch

from workers.protocol import JobError
from workers.training.batches import Sampler
from workers.training.health import is_leap
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ALONE = Ranks(0, 1, 1, torch.device("cpu"))


def loop_of(spec) -> Loop:
    return Loop(spec, ALONE, prepare(spec, ALONE))


def gradients(loop: Loop, monkeypatch) -> list[torch.Tensor]:
    """Of the first step, taken before the optimizer clears them."""
    kept: list[torch.Tensor] = []

    def keep(optimizer, model, clip_norm):
        kept.extend(p.grad.clone() for p in model.parameters())
        return 1.0, True

    monkeypatch.setattr(loop.precision, "step", keep)
    loop.step()
    return kept


@pytest.mark.parametrize("accum_steps", [4, 16])
def test_accumulated_gradients_equal_those_of_the_large_batch(make_spec, monkeypatch, accum_steps):
    # Balance is a property of one batch, not a mean over tokens, and conversations are joined within one; both are left out here.
    plain = {"aux_loss": 0.0, "z_loss": 0.0, "conversations": 0.0}
    large = gradients(loop_of(make_spec("large", micro_batch=2 * accum_steps, **plain)), monkeypatch)
    small = gradients(loop_of(make_spec("small", micro_batch=2, accum_steps=accum_steps, **plain)), monkeypatch)
    assert any(g.abs().max() > 1e-3 for g in large)
    for ours, theirs in zip(small, large, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-4)


def test_an_fp16_overflow_is_told_and_survived(make_spec, capsys):
    loop = loop_of(make_spec(precision="fp16", steps=4))
    loop.precision.scaler._init_scale = 2.0**40  # far beyond what FP16 holds
    progress = loop.run()
    assert progress.step == 4 and progress.skipped_steps == 4
    assert loop.precision.loss_scale == 2.0**36


def break_once(loop: Loop, at_step: int, times: int = 1) -> None:
    """The weights turn to NaN before that step, as an overflow in BF16 would leave them."""
    step, left = loop.step, [times]

    def broken():
        if loop.progress.step == at_step and left[0]:
            left[0] -= 1
            with torch.no_grad():
                loop.model.norm.weight.fill_(torch.nan)
        return step()

    loop.step = broken


def test_a_run_that_diverges_goes_back_to_its_checkpoint_with_half_the_learning_rate(make_spec, capsys):
    loop = loop_of(make_spec(steps=6))
    break_once(loop, at_step=3)
    progress = loop.run()
    assert progress.step == 6 and progress.lr_factor == 0.5
    assert all(torch.isfinite(p).all() for p in loop.model.parameters())
    assert "diverged" in capsys.readouterr().out


def drawn_by(monkeypatch) -> list[list[int]]:
    """The examples of each step that is begun."""
    drawn, take = [], Sampler.take
    monkeypatch.setattr(Sampler, "take", lambda sampler, count: drawn.append(found := take(sampler, count)) or found)
    return drawn


def test_the_batches_since_the_checkpoint_are_not_seen_again(make_spec, capsys, monkeypatch):
    loop = loop_of(make_spec(steps=6))
    drawn = drawn_by(monkeypatch)
    break_once(loop, at_step=3)
    loop.run()
    monkeypatch.undo()
    undisturbed = Sampler(loop.sampler._weights, seed=0)
    assert drawn == [undisturbed.take(2) for _ in drawn] and len(drawn) == 4 + 6
    note = json.loads(next(line for line in capsys.readouterr().out.splitlines() if "diverged" in line))
    assert (note["step"], note["skipped_batches"]) == (0, 4)


def test_a_checkpoint_of_the_weights_that_broke_is_not_gone_back_to(make_spec, capsys, monkeypatch):
    loop = loop_of(make_spec(steps=8, checkpoint_every_seconds=1e-9))
    loop.checkpoints._clock = lambda: 0.0  # so that saving takes no time
    loop.checkpoints._due = -1.0
    monkeypatch.setattr(loop.checkpoints, "_every", -1.0)
    step, left = loop.step, [1]

    def spoil():
        outcome = step()
        if loop.progress.step == 4 and left[0]:
            left[0] = 0
            with torch.no_grad():
                loop.model.norm.weight.fill_(torch.nan)  # after the step: the checkpoint that follows is bad
        return outcome

    loop.step = spoil
    assert loop.run().step == 8
    assert "It goes on from step 3 " in capsys.readouterr().out


def test_a_loss_that_leaps_for_several_steps_goes_back_and_one_hard_batch_does_not(make_spec, capsys):
    usual = [2.0 + 0.1 * np.sin(n) for n in range(40)]
    assert is_leap(4.5, usual, 10) and not is_leap(2.3, usual, 10) and not is_leap(1.0, usual, 10)
    assert not is_leap(4.5, usual[:20], 10) and not is_leap(4.5, usual, 0)
    assert not is_leap(0.85, [0.05 * (1 + n % 2) for n in range(40)], 10)  # many deviations, and nothing to fear: seen in the demonstration

    loop = loop_of(make_spec(steps=50))
    step, embedding = loop.step, loop.model.embedding.weight
    kept = embedding.detach().clone()

    def disturbed():
        with torch.no_grad():
            if loop.progress.step in (36, 40) and loop.progress.lr_factor == 1:
                kept.copy_(embedding)
                embedding.mul_(30)
            elif loop.progress.step == 37 and loop.progress.lr_factor == 1:
                embedding.copy_(kept)  # one step of it only
        return step()

    loop.step = disturbed
    progress = loop.run()
    assert progress.step == 50 and progress.lr_factor == 0.5
    assert "the loss leapt" in capsys.readouterr().out
    assert progress.recent_losses[-1] < 1.5 * min(progress.recent_losses)


def test_a_run_that_diverges_twice_fails_and_says_what_to_do(make_spec):
    loop = loop_of(make_spec(steps=6))
    break_once(loop, at_step=3, times=2)
    with pytest.raises(JobError, match="Lower lr"):
        loop.run()


def test_checkpoints_cost_less_than_three_percent_of_the_time_however_slow_the_disk(make_spec, monkeypatch):
    loop = loop_of(make_spec(steps=1))
    now = [0.0]
    loop.checkpoints._clock = lambda: now[0]
    barrier = ALONE.barrier

    def slow_barrier(self):
        now[0] += 1.0
        return barrier()

    monkeypatch.setattr(Ranks, "barrier", slow_barrier)
    loop._save()
    took = now[0]
    assert not loop.checkpoints.is_due
    now[0] += took / 0.031
    assert not loop.checkpoints.is_due
    now[0] += took / 0.03
    assert loop.checkpoints.is_due


def test_the_sigmoid_routers_bias_moves_against_the_load(make_spec):
    loop = loop_of(make_spec(router="sigmoid", steps=1, bias_rate=0.25))
    loop.step()
    for router, load in zip(loop.routers, loop.progress.recent_load, strict=True):
        mean = sum(load) / len(load)
        assert router.bias.tolist() == [0.25 if tokens < mean else -0.25 for tokens in load]
