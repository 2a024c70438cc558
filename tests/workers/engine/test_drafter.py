"""Guessing ahead: the answers are those without a draft, whatever the draft says."""

import itertools
import random
from contextlib import closing

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import chisquare

from workers.engine import Chunk, Engine, SamplingParams, open_engine
from workers.engine.depth import DEPTHS, Depth
from workers.engine.memory import CacheMemory
from workers.moe import ChatTokenizer, generate

FORM = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def questions(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("What is 光合作用 sugar 1859?", k=draw.randint(1, 24))) for _ in range(count)]


@pytest.fixture(scope="module")
def draft(folder, tmp_path_factory):
    """The model with some noise in its weights: it is right often, not always."""
    copied = tmp_path_factory.mktemp("draft")
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    noise, weights = np.random.default_rng(0), load_file(folder / "model.safetensors")
    for name in weights:
        if "_proj.weight" in name:
            weights[name] *= (1 + 0.03 * noise.standard_normal(weights[name].shape)).astype(np.float32)
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    return copied


@pytest.fixture
def always(monkeypatch):
    """Guess three ahead, whether it pays or not."""
    monkeypatch.setattr(Depth, "now", lambda self, sequences: 3)


def test_greedy_answers_are_those_of_the_plain_loop(always, folder, draft, model, tokenizer):
    asked = questions(40, seed=0)
    engine = open_engine(folder, max_batch=8, draft=draft)
    answers = engine.generate_all([ask(q) for q in asked], max_tokens=30)
    stats = engine.stats()
    engine.close()
    assert [a.text for a in answers] == [generate(model, tokenizer, q, 30) for q in asked]
    assert 0.2 < stats.accepted_tokens / stats.guessed_tokens < 0.98  # both cases were met
    assert stats.completion_tokens > 1.3 * stats.decode_turns


def test_all_that_may_be_asked_of_an_answer_gives_the_same_with_a_draft_and_without(always, folder, draft):
    asked = questions(30, seed=1)
    manners = itertools.cycle(
        [
            {"temperature": 0.9, "seed": 5, "top_p": 0.95, "logprobs": 2}, {"temperature": 1.3, "seed": 6, "top_k": 20},
            {"stop": ("a", "s ")}, {"schema": FORM}, {"presence_penalty": 0.6, "repetition_penalty": 1.4, "temperature": 0.7, "seed": 1},
            {"logit_bias": ((40, 3.0),), "logprobs": 0},
        ]
    )  # fmt: skip
    sampling = [SamplingParams(max_tokens=25, **manner) for manner, _ in zip(manners, asked, strict=False)]
    given = []
    for engine in (open_engine(folder, max_batch=5), open_engine(folder, max_batch=5, draft=draft)):
        found = [ticket.result(20) for ticket in [engine.submit(ask(q), s) for q, s in zip(asked, sampling, strict=True)]]
        turn = [*ask(asked[0]), {"role": "assistant", "content": found[0].text}, *ask(asked[1])]  # goes on in a slot that holds guesses too
        found.append(engine.submit(turn, sampling[0]).result(20))
        given.append([(a.text, a.tokens, a.finish_reason, a.logprobs) for a in found])
        engine.close()
    assert given[0] == given[1]


def test_the_answer_of_the_last_token_that_fits_is_the_same(always, folder, draft):
    """Guesses never lead beyond the context, nor beyond the draft's shorter one."""
    answers = []
    for engine in (open_engine(folder, max_batch=2), open_engine(folder, max_batch=2, draft=draft)):
        answers.append(engine.submit(ask("sugar " * 12), SamplingParams(max_tokens=90)).result(20))
        engine.close()
    assert answers[0].text == answers[1].text
    assert answers[0].finish_reason == answers[1].finish_reason


def test_sequences_that_leave_for_want_of_memory_go_on_with_the_same_text(always, folder, draft):
    """What the draft has read is forgotten with what the model has."""
    asked, answers = [ask(q) for q in questions(12, seed=3)], []
    with closing(open_engine(folder, max_batch=6)) as plain:
        answers.append([a.text for a in plain.generate_all(asked, 40)])
    with closing(open_engine(folder, max_batch=6, draft=draft)) as tight:
        tight._scheduler.memory = CacheMemory(180, lambda tokens: tokens, 6, 96)  # a byte a token
        answers.append([a.text for a in tight.generate_all(asked, 40)])
        assert tight.stats().preemptions > 0
        assert tight.stats().accepted_tokens > 0
    assert answers[0] == answers[1]


def test_the_drafts_keys_and_values_are_in_the_budget(folder, draft):
    with closing(open_engine(folder)) as plain, closing(open_engine(folder, draft=draft)) as drafted:
        assert drafted._scheduler.memory.bytes_of(80) == 2 * plain._scheduler.memory.bytes_of(80)  # here it is of the model's size


class Chain:
    """A model whose next token depends on the last only: five tokens, of which the probabilities are known."""

    reads_guesses = True
    max_batch, max_seq_len = 8, 96

    def __init__(self, seed: int, first: int, vocab_size: int):
        self.first, self.vocab_size = first, vocab_size
        self.table = np.random.default_rng(seed).normal(0, 1.0, (6, 5)).astype(np.float32)  # the last row follows anything else

    def forward(self, chunks: list[Chunk]) -> np.ndarray:
        logits = np.full((sum(c.wanted for c in chunks), self.vocab_size), -1e9, np.float32)
        rows = [token - self.first for c in chunks for token in c.tokens[len(c.tokens) - c.wanted :]]
        logits[:, self.first : self.first + 5] = self.table[[row if 0 <= row < 5 else 5 for row in rows]]
        return logits

    def probabilities(self, temperature: float) -> np.ndarray:
        wide = np.exp(self.table.astype(np.float64) / temperature)
        return wide / wide.sum(-1, keepdims=True)

    def close(self) -> None: ...


def test_drawn_tokens_have_the_models_distribution_whatever_the_draft_prefers(always, tokenizer: ChatTokenizer):
    first, draws, temperature = tokenizer.encode("sugar")[0], 2500, 0.8
    model, draft = Chain(1, first, tokenizer.vocab_size), Chain(2, first, tokenizer.vocab_size)
    engine = Engine(model, tokenizer, max_waiting=draws, draft=draft)
    sampling = [SamplingParams(max_tokens=3, temperature=temperature, seed=seed, logprobs=0) for seed in range(draws)]
    tickets = [engine.submit(ask("What"), each) for each in sampling]
    said = [tuple(t.token - first for t in ticket.result(60).logprobs) for ticket in tickets]
    stats = engine.stats()
    engine.close()

    p = model.probabilities(temperature)
    expected = np.einsum("a,ab,bc->abc", p[5], p[:5], p[:5]).ravel() * draws
    found = np.bincount(np.ravel_multi_index(np.array(said).T, (5, 5, 5)), minlength=125)
    common = expected >= 5
    observed, wanted = [*found[common], found[~common].sum()], [*expected[common], expected[~common].sum()]
    assert chisquare(observed, wanted).pvalue > 0.001
    assert chisquare(observed, np.full(len(wanted), draws / len(wanted))).pvalue < 1e-6  # the test can tell
    assert 0.2 < stats.accepted_tokens / stats.guessed_tokens < 0.8


@pytest.mark.parametrize(("seconds_a_guess", "best"), [(0.1, 5), (0.45, 2), (2.0, 0)])
def test_the_depth_follows_what_is_measured(seconds_a_guess, best):
    """Four in five guesses are right; a step takes 1 s, and what its guesses take."""
    depth, taken, noise = Depth(), [], random.Random(0)
    for _ in range(4000):
        ahead = depth.now(1)
        right = next((n for n in range(ahead) if noise.random() > 0.8), ahead)
        depth.note(1, (1 + seconds_a_guess * ahead) * noise.uniform(0.9, 1.1), 1 + right)
        taken.append(ahead)
    settled = taken[1000:]
    near = DEPTHS[max(DEPTHS.index(best) - 1, 0) : DEPTHS.index(best) + 2]
    assert sum(ahead in near for ahead in settled) > 0.9 * len(settled)
    assert (sum(ahead == 0 for ahead in settled) > 0.9 * len(settled)) == (best == 0)


def test_a_draft_that_fails_is_given_up_and_the_answers_come(always, folder, draft, model, tokenizer, monkeypatch):
    engine = open_engine(folder, max_batch=2, draft=draft)

    def fail(chunks):
        raise RuntimeError("the draft is broken")

    monkeypatch.setattr(engine._drafter._runner, "forward", fail)
    asked = questions(3, seed=2)
    assert [a.text for a in engine.generate_all([ask(q) for q in asked], 12)] == [generate(model, tokenizer, q, 12) for q in asked]
    engine.close()


def test_a_draft_of_another_tokenizer_or_damaged_is_left_out(folder, draft, tmp_path, caplog):
    other = tmp_path / "other"
    other.mkdir()
    for file in draft.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes()[:-64])
    assert "damaged" in _told(folder, other, caplog)
    ChatTokenizer.train([f"w{n}x" for n in range(200)] * 2, 400).save(other, 96)
    assert "another tokenizer" in _told(folder, other, caplog)


def _told(folder, draft, caplog) -> str:
    caplog.clear()
    engine = open_engine(folder, max_batch=2, draft=draft)
    engine.submit(ask("What"), SamplingParams(max_tokens=4)).result(20)
    assert engine.stats().guessed_tokens == 0
    engine.close()
    return caplog.text
