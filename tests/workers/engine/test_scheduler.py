import math

import pytest

from workers.engine.sampling import SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence
from workers.engine.text import Vocabulary


@pytest.fixture
def waits(tokenizer):
    def make(name: str, *, tenant: str = "", is_batch: bool = False, deadline: float = math.inf, prompt=(5, 6, 7)) -> Sequence:
        sampling = SamplingParams(max_tokens=4)
        sequence = Sequence(list(prompt), sampling, 4, Vocabulary(tokenizer), None, tenant=tenant, is_batch=is_batch, deadline=deadline)
        sequence.name = name
        return sequence

    return make


def order_of(scheduler: Scheduler) -> list[str]:
    """Who gets the only slot, one after the other."""
    order = []
    while scheduler.schedule():
        order += [s.name for s in scheduler.running]
        scheduler.remove(scheduler.running[0])
    return order


def test_tenants_take_turns_and_batches_come_last(waits):
    scheduler = Scheduler(slots=1, prefill_tokens=8)
    for name in ("greedy1", "greedy2", "greedy3", "batch1", "small1", "batch2", "other1", "small2"):
        scheduler.add(waits(name, tenant=name[:-1], is_batch=name.startswith("batch")))

    assert order_of(scheduler) == ["greedy1", "small1", "other1", "greedy2", "small2", "greedy3", "batch1", "batch2"]
    assert len(scheduler.waiting) == 0


def test_whose_time_is_up_leaves_waiting_or_running(waits):
    scheduler = Scheduler(slots=1, prefill_tokens=8)
    late, waiting, patient = waits("late", deadline=10.0), waits("waiting", deadline=10.0), waits("patient", deadline=99.0)
    for sequence in (late, waiting, patient):
        scheduler.add(sequence)
    scheduler.schedule()

    assert scheduler.remove_cancelled(now=9.0) == []
    assert scheduler.remove_cancelled(now=11.0) == [late, waiting]
    assert [w.sequence for w in scheduler.schedule()] == [patient]


def test_the_slot_with_the_longest_common_beginning_is_taken_and_else_the_longest_unused(waits):
    scheduler = Scheduler(slots=3, prefill_tokens=1000)
    first, second = list(range(100, 140)), [*range(100, 110), *range(200, 240)]

    def run(prompt):
        sequence = waits("", prompt=prompt)
        scheduler.add(sequence)
        scheduler.schedule()
        sequence.in_cache = len(prompt)
        scheduler.remove(sequence)
        return sequence.slot, sequence.reused_tokens

    assert run(first) == (0, 0)
    assert run(second) == (1, 0)  # a quarter of the first's slot is the same: too little to take it from its conversation
    assert run([*first, 1, 2, 3]) == (0, 40)
    assert run(second) == (1, 49)  # all but the last token, whose logits are asked for
    assert run(list(range(300, 340))) == (2, 0)
    assert run(list(range(400, 440))) == (0, 0)  # the longest unused
    assert run(first) == (1, 10)  # forgotten, but for what the longest unused one holds itself
