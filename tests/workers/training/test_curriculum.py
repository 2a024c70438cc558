"""Stages one after the other: what each draws from, where it ends, and that a resumed run is in the stage it was in."""

from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from workers.protocol import JobError
from workers.training.curriculum import stage_at
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ALONE = Ranks(0, 1, 1, torch.device("cpu"))
ALL = [
    {"kind": "text", "share": 1}, {"kind": "questions", "share": 2}, {"kind": "adversarial", "share": 1, "rehearsal": 0.75}, {"kind": "preference", "share": 1},
]  # fmt: skip


@pytest.fixture
def staged(make_spec, dataset, write_lines):
    write_lines(
        dataset / "preferences.jsonl", [{"kind": "pair", "question": "What is tin?", "chosen": "tin is element 3.", "rejected": "A gas."}] * 3
    )

    def make(name: str = "run", **changes) -> Loop:
        spec = make_spec(name, **{"stages": ALL, "steps": 10, **changes})
        return Loop(spec, ALONE, prepare(spec, ALONE))

    return make


def drawn(loop: Loop, number: int, count: int) -> Counter:
    stage = loop.stages[number]
    loop.stage = None
    loop._stage_at((loop.stages[number - 1].until if number else 0.0) + 1e-6)
    return Counter(stage.units[i].kind for i in loop.sampler.take(count))


def test_each_stage_draws_from_its_own_kind_and_rehearses_earlier_ones(staged):
    loop = staged()
    assert set(drawn(loop, 0, 50)) == {"document"}
    assert set(drawn(loop, 1, 200)) == {"question"}
    third = drawn(loop, 2, 4000)
    assert third["claim"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(third.values()) - third["claim"] == third["question"] + third["document"]


def test_stages_end_at_their_share_of_the_run(staged):
    loop = staged()
    assert [stage_at(loop.stages, done) for done in (0.0, 0.19, 0.21, 0.59, 0.61, 0.79, 0.81, 1.0)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_without_stages_a_run_is_the_datasets_mixture(staged):
    loop = staged(stages=[])
    (stage,) = loop.stages
    assert {e.kind for e in stage.units} == {"document", "question", "claim"}
    assert stage.weights.tolist() == [e.weight for e in stage.units]


@pytest.mark.parametrize("stopped_after", [1, 4, 9])
def test_a_resumed_run_goes_on_in_the_stage_it_was_in(staged, stopped_after):
    whole = staged("whole")
    whole.run()
    first = staged("resumed")
    for _ in range(stopped_after):
        first._between_steps(first.step())
    first._save()

    second = staged("resumed")
    second.run()

    assert second.progress.stage == 3
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stage_that_the_dataset_has_nothing_for_is_refused(staged, dataset, write_lines):
    write_lines(dataset / "train.jsonl", [{"kind": "question", "question": "What is tin?", "answer": "A metal."}])
    with pytest.raises(JobError, match="nothing for the stage 'text'"):
        staged()


def test_an_objective_that_no_stage_has_is_refused(make_spec):
    with pytest.raises(ValidationError, match="goes with a stage of kind preference"):
        make_spec(stages=ALL[:2], objective="kto")
