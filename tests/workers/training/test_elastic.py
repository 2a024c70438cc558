"""A run that goes on with other ranks, or another ZeRO stage, than wrote its checkpoint."""

import pytest
import torch

from workers.protocol import JobError
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ALONE = Ranks(0, 1, 1, torch.device("cpu"))
JOB = {"steps": 8, "schedule": "constant", "lr": 2e-3, "warmup": 0.25, "micro_batch": 2}


def go_on(spec, ranks: Ranks, steps: int) -> tuple[list[float], list[int]]:
    """From the checkpoint, so many steps, and a checkpoint again. The losses, and the examples drawn."""
    loop = Loop(spec, ranks, prepare(spec, ranks))
    drawn: list[int] = []
    batches = loop._batches

    def draw(stage):
        take = loop.sampler.take
        loop.sampler.take = lambda count: drawn.extend(found := take(count)) or found
        made = batches(stage)
        loop.sampler.take = take
        return made

    loop._batches = draw
    if before := loop.checkpoints.load(loop.model, loop.optimizer, loop.precision):
        loop._take_up(before)
    losses = [loop.step().loss for _ in range(steps)]
    loop._save()
    return losses, drawn


@pytest.mark.parametrize(
    ("starts", "optimizer"),
    [
        ([(2, 3), (1, 0)], "adamw"),  # (ranks, stage) of each start
        ([(1, 0), (2, 2)], "adamw"),
        ([(2, 1), (2, 3), (2, 0)], "adamw"),
        ([(2, 3), (1, 0), (2, 1)], "muon"),
    ],
)
def test_the_loss_goes_on_as_if_the_ranks_had_stayed_the_same(make_spec, on_ranks, starts, optimizer):
    job = {**JOB, "optimizer": optimizer}
    whole, examples = go_on(make_spec("whole", accum_steps=4, **job), ALONE, 6)

    losses, drawn = [], []
    for size, stage in starts:
        spec = make_spec("moved", accum_steps=4 // size, world_size=size, zero_stage=stage, **job)

        def start(ranks, spec=spec):
            return go_on(spec, ranks, 6 // len(starts))

        (more, seen), *_ = on_ranks(size, start) if size > 1 else [start(ALONE)]
        losses += more
        drawn += seen

    assert drawn == examples  # none twice, none left out
    # Sums over ranks are rounded in another order, which Muon's BF16 products make visible.
    assert losses == pytest.approx(whole, rel=1e-5 if optimizer == "adamw" else 2e-3)


def test_a_step_keeps_its_examples_where_the_job_names_others(make_spec, on_ranks):
    """Two ranks share what one did, though nobody changed accum_steps."""
    go_on(make_spec("grown", accum_steps=1, **JOB), ALONE, 2)

    def start(ranks):
        spec = make_spec("grown", accum_steps=1, world_size=2, **JOB)
        loop = Loop(spec, ranks, prepare(spec, ranks))
        loop._take_up(loop.checkpoints.load(loop.model, loop.optimizer, loop.precision))
        return loop.progress.examples_per_step, loop.progress.micro_batches, len(loop._batches(loop._stage_at(0.5))[0])

    assert on_ranks(2, start) == [(2, 2, 1)] * 2


def test_more_ranks_than_a_step_has_examples_are_refused(make_spec):
    go_on(make_spec("few", accum_steps=1, **JOB), ALONE, 1)
    spec = make_spec("few", accum_steps=1, **JOB)
    loop = Loop(spec, ALONE, prepare(spec, ALONE))
    loop.ranks = Ranks(0, 3, 3, torch.device("cpu"))
    with pytest.raises(JobError, match="2 examples cannot be shared by 3 ranks"):
        loop._take_up(loop.checkpoints.load(loop.model, loop.optimizer, loop.precision))


def test_a_checkpoint_of_another_version_is_refused(make_spec):
    spec = make_spec("old", **JOB)
    go_on(spec, ALONE, 1)
    path = spec.work_folder / "checkpoints" / "00000001" / "progress.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(JobError, match="another version of the portal wrote it"):
        go_on(spec, ALONE, 1)
