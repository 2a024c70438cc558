import random
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workers.engine import Chunk, Engine, EngineClosed, EngineError, EngineFull, ParameterRefused, PromptTooLong, SamplingParams, open_engine
from workers.engine import engine as engine_module
from workers.engine.torch_runner import open_torch_runner
from workers.moe import generate


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def questions(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("What is 光合作用 sugar 1859?", k=draw.randint(1, 24))) for _ in range(count)]


class Gate:
    """An `on_token` that stops the engine's thread at the first piece until it is opened."""

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, piece: str) -> None:
        self.reached.set()
        assert self.open.wait(10)


def test_answers_are_those_of_the_plain_loop(engine, model, tokenizer):
    asked = questions(40)
    answers = engine.generate_all([ask(q) for q in asked], max_tokens=30)
    assert [a.text for a in answers] == [generate(model, tokenizer, q, 30) for q in asked]
    assert len({a.text for a in answers}) > 30  # the model does not say the same to all, which would prove nothing


def test_an_answer_is_the_same_alone_and_in_company(folder):
    asked = [ask(q) for q in questions(40, seed=1)]
    sampling = SamplingParams(max_tokens=25, temperature=0.9, top_p=0.95, top_k=50, seed=11)
    alone, crowd = open_engine(folder, max_batch=1), open_engine(folder, max_batch=32)
    try:
        assert [a.text for a in alone.generate_all(asked, 25)] == [a.text for a in crowd.generate_all(asked, 25)]
        drawn = [[ticket.result(20).text for ticket in [e.submit(m, sampling) for m in asked]] for e in (alone, crowd)]
        assert drawn[0] == drawn[1]
    finally:
        alone.close()
        crowd.close()


def test_penalties_and_biases_give_in_company_what_the_plain_loop_gives_alone(engine, model, tokenizer):
    """The reference knows nothing of the engine: the whole sequence through the model for each token."""
    asked = questions(12, seed=9)
    sampling = SamplingParams(max_tokens=24, presence_penalty=0.5, frequency_penalty=1.5, repetition_penalty=1.3, logit_bias=((40, 2.0),), logprobs=3)

    tickets = [engine.submit(ask(q), sampling) for q in asked]
    plain = [engine.submit(ask(q), SamplingParams(max_tokens=24)) for q in asked]

    for question, ticket in zip(asked, tickets, strict=True):
        said, expected = _penalised(model, tokenizer, question, sampling)
        found = ticket.result(20).logprobs
        assert [t.token for t in found] == said
        np.testing.assert_allclose([t.logprob for t in found], expected, atol=2e-4)
    assert [t.result(20).text for t in plain] == [generate(model, tokenizer, q, 24) for q in asked]
    assert [t.result().text for t in plain] != [t.result().text for t in tickets]


@torch.inference_mode()
def _penalised(model, tokenizer, question: str, sampling: SamplingParams) -> tuple[list[int], list[float]]:
    tokens = tokenizer.encode_prompt(ask(question))
    start, logprobs = len(tokens), []
    while len(tokens) - start < sampling.max_tokens:
        raw = model(torch.tensor([tokens]))[0, -1].double()
        logits = raw.clone()
        for token, bias in sampling.logit_bias:
            logits[token] += bias
        for token in set(tokens):
            logits[token] *= sampling.repetition_penalty if logits[token] < 0 else 1 / sampling.repetition_penalty
        said = torch.bincount(torch.tensor(tokens[start:], dtype=torch.long), minlength=len(logits))
        logits -= said * sampling.frequency_penalty + (said > 0) * sampling.presence_penalty
        token = int(logits.argmax())
        if token in tokenizer.end_ids:
            break
        tokens.append(token)
        logprobs.append(raw.log_softmax(0)[token].item())
    return tokens[start:], logprobs


def test_a_conversation_goes_on_from_its_earlier_turns_with_the_same_tokens(engine, folder, model, tokenizer):
    """Every answer is that of an engine that has seen nothing before, other conversations between the turns or not."""
    sampling, said = SamplingParams(max_tokens=6, logprobs=0), {}
    conversations = {name: ask(f"{name} What is sugar 光合作用?") for name in "abcdefgh"}
    read = reused = 0
    for turn in range(3):
        for name, messages in conversations.items():
            answer = engine.submit(messages, sampling).result(20)
            text = generate_from(model, tokenizer, messages, 6)
            assert answer.text == text, (turn, name)
            messages += [{"role": "assistant", "content": text}, *ask("1859 Who?")]
            read, reused = read + answer.prompt_tokens, reused + answer.reused_tokens
            said[name, turn] = answer
    assert all(answer.reused_tokens == 0 for (_, turn), answer in said.items() if turn == 0)
    assert all(answer.reused_tokens >= said[name, turn - 1].prompt_tokens for (name, turn), answer in said.items() if turn)
    stats = engine.stats()
    assert (stats.reused_tokens, stats.prompt_tokens) == (reused, read - reused)
    assert reused > read / 3

    fresh = open_engine(folder, max_batch=1)
    last = conversations["h"][:-2]
    again = fresh.submit(last, sampling).result(20)
    fresh.close()
    assert (again.reused_tokens, again.logprobs) == (0, said["h", 2].logprobs)  # to the last bit


@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_a_system_prompt_is_read_once_and_copied_and_the_first_conversation_still_goes_on(kind, folder, model, tokenizer):
    runner = open_engine(folder, max_batch=8)._runner if kind == "fused" else open_torch_runner(folder, threads=1, max_batch=8, max_seq_len=96)
    engine = Engine(runner, tokenizer)
    system = {"role": "system", "content": "It was written: sugar. 1859"}
    shared = len(tokenizer.encode_prompt([system])) - 1
    first = [system, *ask("zq zq zq zq zq zq zq zq " * 2)]
    sampling = SamplingParams(max_tokens=6)
    begun = engine.submit(first, sampling).result(20)

    for question in questions(5, seed=12):
        done = engine.submit([system, *ask(question)], sampling).result(20)
        assert done.reused_tokens >= shared
        assert done.text == generate_from(model, tokenizer, [system, *ask(question)], 6)

    turns = [*first, {"role": "assistant", "content": begun.text}, *ask("Who")]
    last = engine.submit(turns, sampling).result(20)
    engine.close()
    assert last.reused_tokens >= begun.prompt_tokens
    assert last.text == generate_from(model, tokenizer, turns, 6)


def generate_from(model, tokenizer, messages: list[dict[str, str]], most: int) -> str:
    tokens = tokenizer.encode_prompt(messages)
    start = len(tokens)
    with torch.inference_mode():
        while len(tokens) - start < most and (token := int(model(torch.tensor([tokens]))[0, -1].argmax())) not in tokenizer.end_ids:
            tokens.append(token)
    return tokenizer.decode(tokens[start:]).strip()


def test_after_its_deadline_an_answer_is_cut_and_says_so(engine, monkeypatch):
    gate, now = Gate(), [0.0]
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ticket = engine.submit(ask("What"), SamplingParams(max_tokens=60), gate, deadline=1.0)
    assert gate.reached.wait(10)
    now[0] = 1.5
    gate.open.set()
    assert ticket.result(10).finish_reason == "timeout"


def test_a_bias_for_a_token_that_is_none_is_refused(engine):
    with pytest.raises(ParameterRefused, match="token 99999"):
        engine.submit(ask("What"), SamplingParams(max_tokens=4, logit_bias=((99999, 1.0),)))


def test_a_sequence_joins_while_another_decodes_and_leaves_before_it(engine, model, tokenizer):
    late = []

    def join(piece: str) -> None:
        if not late:
            late.append(engine.submit(ask("1859"), SamplingParams(max_tokens=3)))

    early = engine.submit(ask("What"), SamplingParams(max_tokens=60), join)
    assert early.result(20).text == generate(model, tokenizer, "What", 60)
    assert late[0].done()
    assert late[0].result(20).text == generate(model, tokenizer, "1859", 3)


def test_a_long_prompt_is_read_in_parts_while_others_go_on(folder, tokenizer):
    spoken = _Recording(open_engine(folder)._runner)
    engine = Engine(spoken, tokenizer, prefill_tokens=16)
    try:
        long = ask("zq" * 32)
        gate = Gate()
        first = engine.submit(ask("What"), SamplingParams(max_tokens=40), gate)
        assert gate.reached.wait(10)
        second = engine.submit(long, SamplingParams(max_tokens=2))
        gate.open.set()
        assert first.result(20).tokens == 40
        assert second.result(20).prompt_tokens > 48  # three parts at least
    finally:
        engine.close()
    mixed = [chunks for chunks in spoken.forwards if len(chunks) == 2 and max(len(c.tokens) for c in chunks) > 1]
    assert len(mixed) >= 3  # the first goes on during each part of the second's prompt
    assert all(sum(len(c.tokens) for c in chunks if len(c.tokens) > 1) <= 16 for chunks in spoken.forwards)


class _Recording:
    """A runner that remembers what it was given."""

    def __init__(self, runner):
        self._runner, self.forwards = runner, []
        self.max_batch, self.max_seq_len, self.vocab_size = runner.max_batch, runner.max_seq_len, runner.vocab_size

    def forward(self, chunks: list[Chunk]):
        self.forwards.append(list(chunks))
        return self._runner.forward(chunks)

    def close(self) -> None:
        self._runner.close()


def test_a_cancelled_sequence_leaves_at_the_next_step_with_what_it_has(engine, model, tokenizer):
    gate = Gate()
    ticket = engine.submit(ask("What"), SamplingParams(max_tokens=60), gate)
    assert gate.reached.wait(10)
    ticket.cancel()
    gate.open.set()
    completion = ticket.result(10)
    assert completion.finish_reason == "cancelled"
    assert 1 <= completion.tokens <= 5
    assert generate(model, tokenizer, "What", completion.tokens).startswith(completion.text)
    assert engine.stats().running == 0


def test_one_that_waits_can_be_cancelled_too(folder):
    engine = open_engine(folder, max_batch=1)
    gate = Gate()
    engine.submit(ask("What"), SamplingParams(max_tokens=4), gate)
    assert gate.reached.wait(10)
    waiting = engine.submit(ask("Who"), SamplingParams(max_tokens=4))
    waiting.cancel()
    gate.open.set()
    assert waiting.result(10) == type(waiting.result())("", 0, waiting.result().prompt_tokens, 0.0, "cancelled")
    engine.close()


def test_pieces_are_whole_characters_and_join_to_the_text(engine):
    for seed, question in enumerate(questions(20, seed=2)):
        pieces: list[str] = []
        done = engine.submit(ask(question), SamplingParams(max_tokens=40, temperature=1.0, seed=seed), pieces.append).result(20)
        assert "".join(pieces) == done.text
        assert len(pieces) > 3


def test_a_stop_string_ends_the_answer_and_is_never_shown(engine, model, tokenizer):
    for question in questions(12, seed=3):
        whole = generate(model, tokenizer, question, 40)
        if len(whole) < 12:
            continue
        stop, pieces = whole[6:9], []
        done = engine.submit(ask(question), SamplingParams(max_tokens=40, stop=("never said", stop)), pieces.append).result(20)
        assert done.finish_reason == "stop"
        assert done.text == "".join(pieces) == whole[: whole.find(stop)].strip()


def test_a_prompt_that_leaves_no_room_is_refused_with_the_figures(engine):
    words = ask("光" * 300)
    with pytest.raises(PromptTooLong, match=r"has \d+ tokens; this model reads at most 95"):
        engine.submit(words, SamplingParams(max_tokens=1))
    assert engine.generate_all([words], 5)[0].text == ""


def test_an_answer_ends_with_length_where_the_model_has_no_more_room(engine, tokenizer):
    prompt = ask("1")
    while len(tokenizer.encode_prompt(prompt)) < 93:
        prompt[0]["content"] += "1"
    room = 96 - len(tokenizer.encode_prompt(prompt))
    done = engine.submit(prompt, SamplingParams(max_tokens=1000)).result(20)
    assert (done.finish_reason, done.tokens) == ("length", room)


def test_a_full_queue_refuses(folder):
    engine = open_engine(folder, max_batch=1, max_waiting=2)
    gate = Gate()
    tickets = [engine.submit(ask("What"), SamplingParams(max_tokens=4), gate)]
    assert gate.reached.wait(10)
    tickets += [engine.submit(ask("Who"), SamplingParams(max_tokens=4)) for _ in range(2)]
    with pytest.raises(EngineFull, match="2 questions wait"):
        engine.submit(ask("One too many"), SamplingParams(max_tokens=4))
    assert (engine.stats().running, engine.stats().waiting) == (1, 2)
    gate.open.set()
    assert [t.result(10).tokens for t in tickets] == [4, 4, 4]
    engine.close()


def test_closing_ends_those_who_wait(folder):
    engine = open_engine(folder, max_batch=1)
    gate = Gate()
    tickets = [engine.submit(ask("What"), SamplingParams(max_tokens=60), gate)]
    assert gate.reached.wait(10)
    tickets.append(engine.submit(ask("Who"), SamplingParams(max_tokens=60)))
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._closed:
        time.sleep(0.001)
    gate.open.set()
    for ticket in tickets:
        with pytest.raises(EngineClosed):
            ticket.result(10)
    closing.join(10)
    with pytest.raises(EngineClosed):
        engine.submit(ask("What"), SamplingParams(max_tokens=4))
    engine.close()


def test_many_threads_may_ask_at_once(engine, model, tokenizer):
    asked = questions(32, seed=4)
    answers: dict[str, str] = {}

    def one(question: str) -> None:
        answers[question] = engine.submit(ask(question), SamplingParams(max_tokens=12)).result(30).text

    threads = [threading.Thread(target=one, args=(q,)) for q in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {q: generate(model, tokenizer, q, 12) for q in asked}
    assert engine.stats().running == 0


def test_a_seed_gives_the_same_text_again_and_another_seed_another(engine):
    texts = [
        [engine.submit(ask("What"), SamplingParams(max_tokens=20, temperature=1.0, seed=seed)).result(10).text for _ in range(2)] for seed in (1, 2)
    ]  # fmt: skip
    assert texts[0][0] == texts[0][1]
    assert texts[1][0] == texts[1][1]
    assert texts[0][0] != texts[1][0]


def test_an_asker_whose_callback_fails_ends_only_its_own_answer(engine):
    def broken(piece: str) -> None:
        raise RuntimeError("the asker is broken")

    other = engine.submit(ask("Who"), SamplingParams(max_tokens=30))
    with pytest.raises(EngineError, match="the asker is broken"):
        engine.submit(ask("What"), SamplingParams(max_tokens=30), broken).result(10)
    assert other.result(10).tokens == 30
    assert engine.stats().running == 0


def test_a_forward_that_fails_is_told_to_those_in_it_and_the_engine_goes_on(folder, tokenizer):
    class Failing(_Recording):
        def forward(self, chunks):
            if not self.forwards:
                self.forwards.append(chunks)
                raise MemoryError("no room")
            return super().forward(chunks)

    engine = Engine(Failing(open_engine(folder)._runner), tokenizer)
    with pytest.raises(EngineError, match="model failed"):
        engine.submit(ask("What"), SamplingParams(max_tokens=5)).result(10)
    assert engine.submit(ask("What"), SamplingParams(max_tokens=5)).result(10).tokens == 5
    engine.close()


def test_a_role_that_is_none_is_refused(engine):
    with pytest.raises(EngineError, match="'oracle'"):
        engine.submit([{"role": "oracle", "content": "What"}], SamplingParams(max_tokens=4))


def test_no_slot_is_lost_whoever_goes_away_when(engine, model, tokenizer):
    draw = random.Random(5)
    tickets = []
    for question in questions(120, seed=6):
        tickets.append(engine.submit(ask(question), SamplingParams(max_tokens=draw.randint(1, 30), temperature=draw.choice([0.0, 1.0]))))
        if draw.random() < 0.6:
            draw.choice(tickets).cancel()
    reasons = [ticket.result(30).finish_reason for ticket in tickets]
    assert {"cancelled", "length"} <= set(reasons)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    gate, seen = Gate(), set()
    first = engine.submit(ask("What"), SamplingParams(max_tokens=20), gate)
    assert gate.reached.wait(10)
    others = [engine.submit(ask(q), SamplingParams(max_tokens=20), lambda _: seen.add(engine.stats().running)) for q in questions(7, seed=7)]
    gate.open.set()
    assert [t.result(20).text for t in (first, *others)] == [generate(model, tokenizer, q, 20) for q in ("What", *questions(7, seed=7))]
    assert max(seen) == 8
