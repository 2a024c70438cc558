"""Answers that are being written when their worker ends: each goes on elsewhere, or is finished first; none falls silent."""

import pytest

from apps.monitoring import names
from tests.faults.reading import READERS, TOKENS, endless, reading
from tests.stack import recovery, wait_for

pytestmark = pytest.mark.faults


def test_a_stream_goes_on_elsewhere_when_its_worker_is_killed_in_the_middle(stack):
    body = endless(stack)
    with reading(stack, body) as readers:
        stack.freeze("inference")
        unfinished = stack.redis().zcard(names.IN_FLIGHT)
        before = list(readers.texts)
        stack.kill("inference")
    assert unfinished, "all answers were complete before the worker was killed: make them longer"
    assert readers.ends == ["[DONE]"] * READERS
    assert any(len(now) > len(then) for now, then in zip(readers.texts, before, strict=True))
    for number in range(2):  # undisturbed, and not from the cache, the same question has the same answer
        again = stack.post("/v1/chat/completions", {**body, "messages": readers.question(number), "max_tokens": TOKENS + 1})
        assert again["choices"][0]["message"]["content"].startswith(readers.texts[number])


def test_a_worker_that_is_told_to_end_answers_what_it_has(stack):
    body = endless(stack)
    with reading(stack, {**body, "max_tokens": TOKENS - 1}) as readers:
        old = stack.processes("inference")
        for worker in old:
            worker.terminate()
    assert readers.ends == ["[DONE]"] * READERS
    wait_for(lambda: not any(worker.is_running() for worker in old), within=recovery, what="the worker has ended")
    again = stack.post("/v1/chat/completions", {**body, "messages": readers.question(0)})
    assert again["choices"][0]["message"]["content"].startswith(readers.texts[0])
