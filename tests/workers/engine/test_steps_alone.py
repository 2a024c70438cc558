"""Steps that the runner takes by itself: nobody's answer is another for them, whoever comes, goes away or ends in the middle."""

import random
from contextlib import closing

import numpy as np
import pytest

from tests.workers.engine.test_engine import Gate, ask, generate_from, questions
from workers.engine import Engine, EngineError, SamplingParams, engine, open_engine
from workers.engine.memory import CacheMemory
from workers.moe import generate


class Counted:
    """The real runner, with the most steps of each call that it was left alone."""

    def __init__(self, runner):
        self._runner = runner
        self.steps: list[int] = []

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def decode(self, chunks, most, ends):
        self.steps.append(max(most))
        return self._runner.decode(chunks, most, ends)


@pytest.fixture
def patient(monkeypatch):
    """As many steps alone as there may be, however slow this machine is."""
    monkeypatch.setattr(engine, "ALONE_SECONDS", 1e9)


@pytest.fixture
def counted(folder, tokenizer, patient):
    with closing(Engine(Counted(open_engine(folder, max_batch=4)._runner), tokenizer)) as opened:
        yield opened


def steps_of(opened: Engine) -> list[int]:
    return opened._runner.steps


def test_whoever_comes_ends_or_is_cancelled_among_steps_alone_says_what_the_plain_loop_says(counted, model, tokenizer):
    draw, tickets = random.Random(3), {}

    def hear(piece: str) -> None:
        """From the middle of the others' answers, somebody comes and somebody goes."""
        if asked:
            question = asked.pop()
            tickets[question] = counted.submit(ask(question), SamplingParams(max_tokens=draw.randint(1, 80)), hear)
        if draw.random() < 0.1:
            draw.choice(list(tickets.values())).cancel()

    asked = questions(60, seed=20)
    hear("")
    while len(tickets) < 60:
        for ticket in list(tickets.values()):
            ticket.result(20)
        if asked and all(ticket.done() for ticket in tickets.values()):
            hear("")

    found = {question: ticket.result(20) for question, ticket in tickets.items()}
    for question, done in found.items():
        whole = generate(model, tokenizer, question, done.tokens)
        assert done.text == whole if done.finish_reason != "cancelled" else whole.startswith(done.text)
    assert {done.finish_reason for done in found.values()} >= {"length", "cancelled"}
    assert max(steps_of(counted)) > 20
    stats = counted.stats()
    assert (stats.running, stats.completion_tokens) == (0, stats.decode_turns)


def test_an_answer_that_ends_in_the_middle_counts_no_token_after_its_end(counted, model, tokenizer, monkeypatch):
    for question in questions(8, seed=21):
        plain = counted.submit(ask(question), SamplingParams(max_tokens=30, logprobs=0)).result(20)
        end = plain.logprobs[12].token
        expected = next(n for n, said in enumerate(plain.logprobs) if said.token == end)
        monkeypatch.setattr(counted, "_end_ids", {end})
        monkeypatch.setattr(counted, "_is_end", np.arange(counted._runner.vocab_size) == end)
        before = counted.stats().completion_tokens
        done = counted.submit(ask(question), SamplingParams(max_tokens=30)).result(20)
        assert (done.tokens, done.finish_reason) == (expected, "stop")
        assert done.text == tokenizer.decode([said.token for said in plain.logprobs[:expected]]).strip()
        assert counted.stats().completion_tokens == before + expected + 1  # with the end itself
        monkeypatch.undo()
        turn = [*ask(question), {"role": "assistant", "content": done.text}, *ask("Who")]
        assert counted.submit(turn, SamplingParams(max_tokens=9)).result(20).text == generate_from(model, tokenizer, turn, 9)


def test_one_whose_every_token_must_be_looked_at_keeps_the_others_with_it(counted, model, tokenizer):
    gate, (question, other) = Gate(), questions(2, seed=22)
    first = counted.submit(ask(question), SamplingParams(max_tokens=60), gate)
    assert gate.reached.wait(10)
    beside = counted.submit(ask(other), SamplingParams(max_tokens=40, logprobs=1))
    until_then: list[list[int]] = []
    beside.when_done(lambda: until_then.append(list(steps_of(counted))))
    gate.open.set()
    assert beside.result(20).text == generate(model, tokenizer, other, 40)
    assert until_then == [[]]
    assert first.result(20).text == generate(model, tokenizer, question, 60)
    assert max(steps_of(counted)) > 10


def test_while_others_wait_for_a_slot_only_a_few_steps_are_taken_alone(folder, tokenizer, patient):
    with closing(Engine(Counted(open_engine(folder, max_batch=1)._runner), tokenizer)) as one_slot:
        gate = Gate()
        tickets = [one_slot.submit(ask("What"), SamplingParams(max_tokens=40), gate)]
        assert gate.reached.wait(10)
        tickets.append(one_slot.submit(ask("Who"), SamplingParams(max_tokens=40)))
        waited_for: list[int] = []
        tickets[0].when_done(lambda: waited_for.extend(steps_of(one_slot)))
        gate.open.set()
        tickets[1].result(20)
    assert max(waited_for) == engine.QUEUED_STEPS < max(steps_of(one_slot))


def test_a_runner_that_is_slow_is_left_alone_for_one_step(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(engine, "ALONE_SECONDS", 1e-9)
    with closing(Engine(Counted(open_engine(folder, max_batch=1)._runner), tokenizer)) as slow:
        slow.submit(ask("What"), SamplingParams(max_tokens=20)).result(20)
    assert set(steps_of(slow)) == {1}


def test_memory_is_held_for_steps_alone_and_where_it_is_short_there_are_none(folder, tokenizer, model, patient):
    asked, sampling = [ask(q) for q in questions(6, seed=23)], SamplingParams(max_tokens=50)
    runner = Counted(open_engine(folder, max_batch=4)._runner)
    memory = CacheMemory(200, lambda tokens: tokens, 4, 96)
    with closing(Engine(runner, tokenizer, memory=memory)) as scarce:
        tickets = [scarce.submit(messages, sampling) for messages in asked]
        texts = [ticket.result(20).text for ticket in tickets]
        preemptions = scarce.stats().preemptions
    assert texts == [generate(model, tokenizer, messages[0]["content"], 50) for messages in asked]
    assert preemptions > 0
    assert 1 in runner.steps
    assert max(runner.steps) > 1
    assert memory.used_bytes <= 200


def test_weights_that_give_no_numbers_end_only_the_answer_that_met_them(counted):
    plain = [counted.submit(ask(q), SamplingParams(max_tokens=30, logprobs=0)).result(20) for q in ("What", "Who 1859?")]
    said = [[spoken.token for spoken in done.logprobs] for done in plain]
    spoilt = next(token for token in said[1][5:] if token not in said[0])
    counted._runner._weights.embedding[spoilt] = np.nan
    gate, pieces = Gate(), []
    tickets = [counted.submit(ask("What"), SamplingParams(max_tokens=30), gate)]
    assert gate.reached.wait(10)
    tickets.append(counted.submit(ask("Who 1859?"), SamplingParams(max_tokens=30), pieces.append))
    gate.open.set()
    with pytest.raises(EngineError, match="no finite numbers"):
        tickets[1].result(20)
    assert pieces
    assert plain[1].text.startswith("".join(pieces))
    assert tickets[0].result(20).text == plain[0].text
