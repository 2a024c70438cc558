"""A budget for keys and values: who waits, who leaves, and that nobody's answer is another for it."""

import math
from contextlib import closing

import numpy as np
import pytest

from tests.workers.engine.test_engine import ask, questions
from tests.workers.engine.test_opening import SPECIAL
from workers.engine import CacheTooSmall, Engine, SamplingParams, open_engine
from workers.engine.memory import PAGE, CacheMemory, KeysAndValues
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence
from workers.engine.text import Vocabulary

A_TOKEN = 100  # bytes, as the tests count: their models are smaller than a page


class Counted:
    """The real runner, whose slots are scribbled over where they are emptied: what is read there afterwards would be wrong."""

    def __init__(self, runner):
        self._runner, self.chunks = runner, 0
        self.emptied: list[int] = []

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def empty(self, slot: int) -> None:
        self.emptied.append(slot)
        self._runner._keys[:, slot] = self._runner._values[:, slot] = 1e3

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        self._runner.copy_prefix(source, target, tokens)

    def forward(self, chunks):
        self.chunks = max(self.chunks, len(chunks))
        return self._runner.forward(chunks)


@pytest.fixture
def scarce(folder, tokenizer):
    """An engine of eight slots with memory for so many tokens together."""
    opened = []

    def make(tokens: int) -> tuple[Engine, Counted]:
        runner = Counted(open_engine(folder, max_batch=8)._runner)
        opened.append(Engine(runner, tokenizer, prefill_tokens=24, memory=CacheMemory(tokens * A_TOKEN, lambda n: n * A_TOKEN, 8, 96)))
        return opened[-1], runner

    yield make
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_those_who_had_to_leave_say_what_they_would_have_said(scarce, engine, temperature):
    """As the same engine says it with memory for all; greedy and drawn, with penalties, and token by token."""
    small, runner = scarce(150)
    asked = [
        (ask(q), SamplingParams(max_tokens=40, temperature=temperature, seed=n, frequency_penalty=n % 2, logprobs=0))
        for n, q in enumerate(questions(14, seed=21))
    ]

    wanted = [ticket.result(60) for ticket in [engine.submit(*one) for one in asked]]
    tickets = [small.submit(*one, tenant=str(n % 3), is_batch=n % 4 == 0) for n, one in enumerate(asked)]
    found = [ticket.result(60) for ticket in tickets]

    stats = small.stats()
    assert stats.preemptions > 1
    assert len(runner.emptied) > 1
    assert 1 < runner.chunks < 8  # several at once, and fewer than there are slots
    assert stats.cache_used_bytes <= stats.cache_total_bytes == 150 * A_TOKEN
    for one, other in zip(found, wanted, strict=True):
        assert (one.text, one.finish_reason, [t.token for t in one.logprobs]) == (other.text, other.finish_reason, [t.token for t in other.logprobs])


def test_texts_to_embed_that_had_to_leave_are_read_again(scarce, folder, tokenizer):
    from workers.engine.torch_runner import open_torch_runner

    text = "zq " * 20
    plain = Engine(open_torch_runner(folder, threads=1, max_batch=1, max_seq_len=96), tokenizer)
    small, _ = scarce(len(tokenizer.encode(text)) + 30)
    expected = plain.embed(text)
    expected.result(30)
    plain.close()

    chatting = small.submit(ask("What"), SamplingParams(max_tokens=40))
    reading = [small.embed(text) for _ in range(3)]

    assert chatting.result(30).tokens == 40
    for ticket in reading:
        ticket.result(30)
        np.testing.assert_allclose(ticket.embedding, expected.embedding, atol=1e-4)


def test_what_can_never_fit_is_refused_with_the_figures(scarce, tokenizer):
    small, _ = scarce(30)
    prompt = ask("zq" * 30)
    tokens = len(tokenizer.encode_prompt(prompt))
    assert 30 < tokens < 95

    with pytest.raises(CacheTooSmall, match=rf"has {tokens} tokens; .* take {(tokens + 1) * A_TOKEN:,} bytes, .* may use 3,000, .* for 30 tokens"):
        small.submit(prompt, SamplingParams(max_tokens=1))
    assert small.submit(ask("W"), SamplingParams(max_tokens=90)).result(20).finish_reason == "length"  # what fits is as long as it can be


def sequence(tokenizer, name: str, **manner) -> Sequence:
    made = Sequence(list(range(10)), SamplingParams(max_tokens=40), 40, Vocabulary(tokenizer), None, deadline=math.inf, **manner)
    made.name = name
    return made


def step(scheduler: Scheduler) -> list[str]:
    """One forward, and a token for whoever decodes."""
    for one, chunk in scheduler.schedule():
        one.in_cache += len(chunk.tokens)
        if one.in_cache == len(one.tokens):
            one.tokens.append(7)
    return [s.name for s in scheduler.running]


def test_batches_leave_first_then_the_youngest_and_whoever_left_is_the_next(tokenizer):
    scheduler = Scheduler(8, 1000, memory=CacheMemory(80 * A_TOKEN, lambda n: n * A_TOKEN, 8, 80))
    old, batch, young, waiting = (sequence(tokenizer, n, is_batch=n == "batch") for n in ("old", "batch", "young", "waiting"))
    for one in (old, young, waiting):
        scheduler.add(one)
    scheduler.add(batch)
    seen = [step(scheduler)]
    scheduler.remove(waiting)  # it ends; its memory goes to who is short of it
    seen.append(step(scheduler))
    while len(scheduler.running) > 1:
        seen.append(step(scheduler))
        assert scheduler.memory.used_bytes <= scheduler.memory.total_bytes

    order = [now for now, before in zip(seen, [None, *seen], strict=False) if now != before]
    assert order == [["old", "young", "waiting"], ["old", "young", "batch"], ["old", "young"], ["old"]]
    assert scheduler.waiting.next() is young


def test_one_that_talks_takes_a_batchs_place(tokenizer):
    scheduler = Scheduler(8, 1000, memory=CacheMemory(30 * A_TOKEN, lambda n: n * A_TOKEN, 8, 30))
    scheduler.add(sequence(tokenizer, "batch", is_batch=True))
    assert step(scheduler) == ["batch"]
    scheduler.add(sequence(tokenizer, "chat"))

    assert step(scheduler) == ["chat"]
    assert scheduler.waiting.next().name == "batch"


@pytest.mark.parametrize("special", [{}, {**SPECIAL, "sliding_layers": (0,)}], ids=["compiled", "modules"])
def test_a_runners_slots_share_a_budget_and_answers_are_the_same(make_folder, special):
    """Each runner counts its own slots, as pages; a token is 128 bytes in each head, so that a slot grows with every 32."""
    folder = make_folder(max_seq_len=2048, head_dim=32, **special)
    asked = [ask(q) for q in questions(12, seed=5)]
    with closing(open_engine(folder, max_batch=8)) as engine:
        wanted = [a.text for a in engine.generate_all(asked, 70)]
        runner = engine._runner
        budget_bytes = 3 * runner.bytes_of(100) + PAGE
        assert 5 * runner.bytes_of(20) < budget_bytes < 8 * runner.bytes_of(60)

    with closing(open_engine(folder, max_batch=8, cache_bytes=budget_bytes)) as engine:
        assert [a.text for a in engine.generate_all(asked, 70)] == wanted
        stats = engine.stats()
        assert stats.preemptions > 1
        assert 0 < stats.cache_used_bytes <= stats.cache_total_bytes == budget_bytes


def test_a_slot_takes_no_more_memory_of_the_system_than_is_counted_and_gives_it_back():
    cache = KeysAndValues(layers=2, slots=8, kv_heads=4, head_dim=32, capacity=4096, panel=64)
    before = _resident(cache)

    for slot, tokens in enumerate((1, 300, 1025, 4096)):
        cache.keys[:, slot, :, : -(-tokens // 64)] = 1.0  # whole panels: a position is a lane of one
        cache.values[:, slot, :, :tokens] = 1.0
        grown = _resident(cache) - before
        assert cache.bytes_of(tokens) / 2 - 8 * PAGE < grown <= cache.bytes_of(tokens)
        cache.empty(slot)
        assert _resident(cache) - before <= 8 * PAGE  # of the pages at its ends, which are its neighbours' too
        assert not cache.keys[:, slot, :, 1:-1].any()


def _resident(cache: KeysAndValues) -> int:
    """Bytes of the mappings in which the arrays are, as the kernel counts them."""
    from pathlib import Path

    ends = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in (cache.keys, cache.values)]
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = any(low < end and begin < high for begin, end in ends)
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total
