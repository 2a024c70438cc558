"""The loop in this process: what one step computes, and what it does when numbers break."""

import pytest
import torch

from workers.protocol import JobError
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
