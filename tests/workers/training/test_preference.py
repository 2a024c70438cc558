"""DPO and KTO: the losses against the published formulas in plain numbers, and what training by them does."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from workers.moe import load_model
from workers.protocol import JobError
from workers.training.batches import pack
from workers.training.loop import Loop
from workers.training.preference import dpo_loss, kto_loss, log_probs, read_units
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ALONE = Ranks(0, 1, 1, torch.device("cpu"))
CHOSEN, REJECTED = [-3.0, -8.0, -1.5], [-4.0, -2.5, -1.5]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-3.5, -7.0, -9.0], [-4.5, -2.0, -0.5]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_dpo_loss_is_that_of_the_paper():
    # eq. 7; trl's DPOTrainer: -logsigmoid(beta * ((pi_chosen - pi_rejected) - (ref_chosen - ref_rejected)))
    expected = [
        -math.log(sigmoid(0.3 * ((c - r) - (rc - rr)))) for c, r, rc, rr in zip(CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED, strict=True)
    ]

    loss = dpo_loss(*(torch.tensor(x) for x in (CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)), beta=0.3)

    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_kto_loss_is_that_of_the_paper():
    # eq. 8; trl's KTOTrainer: 1 - sigmoid(beta * (log_ratio - kl)) of desirable, 1 - sigmoid(beta * (kl - log_ratio)) of undesirable ones
    good, kl, beta = [True, False, False], 0.7, 0.2
    expected = []
    for c, rc, is_good in zip(CHOSEN, REFERENCE_CHOSEN, good, strict=True):
        ratio = c - rc
        expected.append(1.5 * (1 - sigmoid(beta * (ratio - kl))) if is_good else 0.8 * (1 - sigmoid(beta * (kl - ratio))))

    loss = kto_loss(torch.tensor(CHOSEN), torch.tensor(REFERENCE_CHOSEN), torch.tensor(good), torch.tensor(kl), beta, 1.5, 0.8)

    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def rated(dataset, write_lines):
    """The ten facts, each with a wrong answer beside the right one."""
    things = ["gold", "silver", "iron", "tin", "lead", "zinc", "copper", "nickel", "sodium", "helium"]
    pairs, judged = [], []
    for n, thing in enumerate(things):
        question, right, wrong = f"What is {thing}?", f"{thing} is element {n}.", f"{thing} is a gas."
        pairs.append({"kind": "pair", "question": question, "chosen": right, "rejected": wrong})
        judged += [{"kind": "judged", "question": question, "answer": a, "good": a == right} for a in (right, wrong)]
    write_lines(dataset / "preferences.jsonl", pairs + judged)
    return dataset


@pytest.fixture
def preference_spec(make_spec, rated, parent):
    def make(name: str = "run", **changes):
        return make_spec(name, **{"preset": "nano", "model": None, "parent_folder": parent, "objective": "dpo", "steps": 6, **changes})

    return make


def loop_of(spec) -> Loop:
    return Loop(spec, ALONE, prepare(spec, ALONE))


def by_hand(model, example) -> float:
    """The log-probability of an example's learnt tokens, the sequence alone in its forward."""
    ids = torch.tensor(example.ids.astype(np.int64))
    scores = model(ids[None])[0].log_softmax(-1)
    return sum(float(scores[at - 1, ids[at]]) for at in np.flatnonzero(example.learnt))


@torch.no_grad()
def test_log_probabilities_of_packed_answers_are_those_of_each_alone(parent, rated):
    model, tokenizer = load_model(parent)
    units = read_units(rated, "dpo", tokenizer, 64, seed=0)
    sequences = [s for unit in units for s in (unit.first, unit.second)]
    batch = pack(sequences)

    logits = model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)

    assert batch.tokens.shape[0] < len(sequences)  # several to a row
    assert log_probs(logits, batch, len(sequences)).tolist() == pytest.approx([by_hand(model, s) for s in sequences], rel=1e-4)


@pytest.mark.parametrize(("method", "first_loss"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_at_the_parent_nothing_is_preferred_yet(preference_spec, method, first_loss):
    loop = loop_of(preference_spec(objective=method, micro_batch=4))
    assert loop.step().loss == pytest.approx(first_loss, abs=1e-5)


@pytest.mark.parametrize("changes", [{"objective": "dpo"}, {"objective": "kto"}, {"objective": "dpo", "chosen_likelihood": 0.5, "lora": {"rank": 4}}])
def test_what_was_preferred_becomes_likelier_next_to_what_was_not(preference_spec, parent, changes):
    loop = loop_of(preference_spec(steps=60, micro_batch=5, preference_lr=0.3, **changes))
    before, tokenizer = load_model(parent)
    units = read_units(loop.spec.dataset_folder, "dpo", tokenizer, 64, seed=0)

    def margins(model) -> np.ndarray:
        with torch.no_grad():
            return np.array([by_hand(model, unit.first) - by_hand(model, unit.second) for unit in units])

    old = margins(before)
    loop.run()
    assert (margins(loop.model.eval()) - old > 0.5).all()


def test_a_run_resumed_within_the_stage_keeps_its_reference(preference_spec):
    whole = loop_of(preference_spec("whole", micro_batch=4))
    whole.run()
    spec = preference_spec("resumed", micro_batch=4)
    first = loop_of(spec)
    for _ in range(3):
        first._between_steps(first.step())
    first._save()

    second = loop_of(spec)
    second.run()

    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_sharded_ranks_learn_what_one_learns(preference_spec, run_child):
    job = {"objective": "kto", "optimizer": "adamw", "schedule": "constant", "preference_lr": 0.25, "lr": 2e-3, "aux_loss": 0.0, "z_loss": 0.0}
    child = run_child(preference_spec("ranks", world_size=2, zero_stage=3, threads=2, micro_batch=4, **job))
    alone = loop_of(preference_spec("alone", micro_batch=8, **job))
    assert child.losses == pytest.approx({n: alone.step().loss for n in range(1, 7)}, abs=1e-4)


@pytest.mark.parametrize(("rows", "method", "said"), [
    ([], "dpo", "This dataset has none"),
    ([{"kind": "judged", "question": "Why?", "answer": "No.", "good": False}], "dpo", "two answers to one question"),
    ([{"kind": "judged", "question": "Why?", "answer": "No.", "good": False}], "kto", "Only one kind is here"),
])  # fmt: skip
def test_a_dataset_without_such_ratings_is_refused(preference_spec, rated, write_lines, rows, method, said):
    write_lines(rated / "preferences.jsonl", rows)
    with pytest.raises(JobError, match=said):
        prepare(preference_spec(objective=method), ALONE)


def test_preferences_need_a_parent_as_reference(make_spec):
    with pytest.raises(ValidationError, match="give a parent_folder"):
        make_spec(objective="dpo")
