"""Each runner against the model's own forward."""

import json

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from numba import njit
from numba.core.registry import cpu_target

from workers.engine import Chunk, UnusableModel
from workers.engine.fused import compile_decoder
from workers.engine.fused_runner import FusedRunner
from workers.engine.fused_weights import decode_weights, read_weights
from workers.engine.rowwise import likeliest
from workers.engine.torch_runner import open_torch_runner
from workers.moe import load_model

SHAPES = {
    "softmax router": {},
    "sigmoid router": {"router": "sigmoid", "n_shared_experts": 2, "first_dense_layers": 1, "d_dense": 24},
    "dense": {"n_experts": 0, "top_k": 0, "d_expert": 0, "d_dense": 40},
}


def open_fused(folder, *, threads, **room):
    return FusedRunner(read_weights(folder, json.loads((folder / "config.json").read_text())), threads=threads, **room)


RUNNERS = {
    "torch": open_torch_runner,
    "fused": open_fused,
    "fused, three threads": lambda folder, *, threads, **room: open_fused(folder, threads=3, **room),
    "fused, decoded": lambda folder, *, threads, **room: FusedRunner(decode_weights(folder), threads=threads, **room),
}


@pytest.fixture(scope="module", params=SHAPES)
def shaped(request, make_folder):
    return make_folder(**SHAPES[request.param])


@pytest.fixture(params=RUNNERS)
def runner(request, shaped):
    opened = RUNNERS[request.param](shaped, threads=1, max_batch=6, max_seq_len=96)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def expected(shaped):
    model, _ = load_model(shaped)

    def logits(tokens: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([tokens]))[0].numpy()

    return logits


def sequence(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, length).tolist()


def test_a_prompt_in_parts_gives_the_logits_of_the_whole(runner, expected):
    tokens = sequence(0, 70)
    for start, end in ((0, 33), (33, 34), (34, 60), (60, 61), (61, 70)):
        given = runner.forward([Chunk(2, start, tokens[start:end])])
        assert given.shape == (1, runner.vocab_size)
        assert given.dtype == np.float32
        assert abs(given[0] - expected(tokens)[end - 1]).max() <= 1e-4


def test_chunks_of_all_kinds_share_a_forward(runner, expected):
    whole = [sequence(seed, 40 + seed) for seed in range(6)]
    ends = [0] * 6
    rounds = [[12, 1, 5, 0, 20, 3], [1, 1, 9, 7, 1, 1], [1, 30, 1, 1, 1, 1], [1, 1, 1, 1, 0, 36]]
    for lengths in rounds:
        taken = [slot for slot in (4, 0, 5, 2, 1, 3) if lengths[slot]]
        given = runner.forward([Chunk(slot, ends[slot], whole[slot][ends[slot] : ends[slot] + lengths[slot]]) for slot in taken]).copy()
        for row, slot in enumerate(taken):
            ends[slot] += lengths[slot]
            assert abs(given[row] - expected(whole[slot])[ends[slot] - 1]).max() <= 1e-4


def test_a_slot_that_is_used_again_remembers_nothing(runner, expected):
    runner.forward([Chunk(0, 0, sequence(1, 90))])
    tokens = sequence(2, 30)
    runner.forward([Chunk(0, 0, tokens[:20])])
    for at in range(20, 30):
        assert abs(runner.forward([Chunk(0, at, tokens[at : at + 1])])[0] - expected(tokens)[at]).max() <= 1e-4


def test_a_slot_can_be_filled_to_the_last_token(runner, expected):
    tokens = sequence(3, 96)
    runner.forward([Chunk(5, 0, tokens[:95])])
    assert abs(runner.forward([Chunk(5, 95, tokens[95:])])[0] - expected(tokens)[95]).max() <= 1e-4


def test_the_logits_after_several_tokens_are_those_of_reading_them_one_by_one(runner):
    """As guesses are read: from the middle of a sequence, beside others that want one."""
    whole = [sequence(seed, 50) for seed in range(4)]
    runner.forward([Chunk(slot, 0, tokens[:20]) for slot, tokens in enumerate(whole)])
    alone = [[runner.forward([Chunk(slot, at, tokens[at : at + 1])])[0].copy() for at in range(20, 32)] for slot, tokens in enumerate(whole)]
    wanted = [3, 1, 12, 5]
    given = runner.forward([Chunk(slot, 20, tokens[20:32], wanted=wanted[slot]) for slot, tokens in enumerate(whole)])
    assert len(given) == sum(wanted)  # more than there are slots
    for slot, count in enumerate(wanted):
        rows, given = given[:count], given[count:]
        assert abs(rows - np.array(alone[slot][-count:])).max() <= 1e-4


def test_a_row_of_the_fused_decoder_is_the_same_to_the_last_bit_in_any_company(shaped):
    runner = open_fused(shaped, threads=1, max_batch=32, max_seq_len=96)
    prompts = [sequence(seed, 5 + seed) for seed in range(32)]
    alone = [runner.forward([Chunk(0, 0, tokens)])[0].copy() for tokens in prompts]
    for count in (2, 7, 32):
        together = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(prompts[:count])])
        assert np.array_equal(together, alone[:count])


@pytest.mark.parametrize("threads", [1, 3])
def test_tokens_that_the_decoder_chooses_alone_are_those_chosen_one_by_one(shaped, threads):
    """Until each has as many as were wanted, or one that is an end; and all but the last have been read."""
    prompts, wanted = [sequence(seed, 20 + seed) for seed in range(6)], [1, 30, 7, 12, 30, 2]
    slots = [4, 0, 5, 2, 1, 3]

    def begun() -> tuple[FusedRunner, list[int]]:
        runner = open_fused(shaped, threads=threads, max_batch=6, max_seq_len=96)
        return runner, runner.forward([Chunk(slot, 0, tokens) for slot, tokens in zip(slots, prompts, strict=True)]).argmax(-1).tolist()

    def one_by_one(runner: FusedRunner, slot: int, at: int, token: int, count: int) -> list[int]:
        found = [token]
        for ahead in range(count):
            found.append(int(runner.forward([Chunk(slot, at + ahead, found[-1:])])[0].argmax()))
        return found[1:]

    runner, first = begun()
    expected = [one_by_one(runner, *given) for given in zip(slots, map(len, prompts), first, wanted, strict=True)]
    is_end = np.zeros(runner.vocab_size, bool)
    is_end[expected[1][10]] = is_end[expected[3][4]] = True
    runner.close()

    runner, first = begun()
    found = runner.decode([Chunk(s, len(p), [t]) for s, p, t in zip(slots, prompts, first, strict=True)], wanted, is_end)
    assert found == [tokens[: next((n + 1 for n, token in enumerate(tokens) if is_end[token]), len(tokens))] for tokens in expected]
    assert len(found[1]) <= 11
    for slot, prompt, tokens, whole in zip(slots, prompts, found, expected, strict=True):
        more = one_by_one(runner, slot, len(prompt) + len(tokens), tokens[-1], len(whole) - len(tokens))
        assert tokens + more == whole
    runner.close()


@pytest.mark.parametrize("worst", [np.nan, -np.nan, np.inf])
def test_the_decoder_chooses_no_token_from_numbers_that_are_not_finite(make_folder, worst):
    """Only the sequence is given up that met them, and not for tokens that came before."""
    runner = open_fused(make_folder(), threads=1, max_batch=2, max_seq_len=96)
    start = runner.forward([Chunk(0, 0, [5]), Chunk(1, 0, [9])]).argmax(-1).tolist()
    chunks, is_end = [Chunk(slot, 1, [token]) for slot, token in enumerate(start)], np.zeros(runner.vocab_size, bool)
    sound = runner.decode(chunks, [6, 6], is_end)
    assert not set(sound[1]) & {*start, *sound[0][:3]}
    runner._weights.embedding[sound[1][3]] = worst
    assert runner.decode(chunks, [6, 6], is_end) == [sound[0], [*sound[1][:4], -1]]
    runner.close()


@pytest.mark.parametrize("width", [15, 450, 2048])
def test_the_likeliest_is_the_first_of_the_largest(width):
    draw = np.random.default_rng(width)
    for _ in range(50):
        logits = np.round(draw.normal(draw.choice([-20, 0, 20]), 2, width + 9)).astype(np.float32)  # many are the same, beyond the width too
        logits[draw.integers(0, width + 9, 3)] = draw.choice([-0.0, 0.0, -np.inf])
        assert _likeliest(logits, width) == logits[:width].argmax()
        logits[draw.integers(0, width)] = draw.choice([np.nan, -np.nan, np.inf])
        assert _likeliest(logits, width) == -1


@njit
def _likeliest(logits, width):
    return likeliest(logits, width)


def test_compiled_code_is_made_again_where_a_source_or_the_processor_differs(tmp_path):
    source = tmp_path / "source.py"

    def key_in_the_cache(text: str) -> tuple:
        source.write_text(text)
        compiled = compile_decoder("a test", str(source))
        return compiled._cache._index_key((), cpu_target.target_context.codegen())

    first, again, changed = (key_in_the_cache(text) for text in ("x = 1", "x = 1", "x = 2"))
    assert first == again != changed
    assert llvm.get_host_cpu_name() in first[1]


def test_chunks_longer_than_the_buffers_go_through_in_pieces(make_folder):
    folder = make_folder(max_seq_len=400)
    model, _ = load_model(folder)
    runner = open_fused(folder, threads=1, max_batch=2, max_seq_len=400)
    tokens = sequence(9, 400)
    given = runner.forward([Chunk(0, 0, tokens[:3]), Chunk(1, 0, tokens)])
    with torch.inference_mode():
        expected = model(torch.tensor([tokens]))[0].numpy()
    assert abs(given - expected[[2, 399]]).max() <= 1e-4


def test_weights_that_do_not_fit_the_configuration_never_reach_compiled_code(shaped):
    described = json.loads((shaped / "config.json").read_text())
    for name, wrong in {"hidden_size": 64, "vocab_size": 9999, "num_attention_heads": 8, "num_hidden_layers": 3, "head_dim": 16}.items():
        with pytest.raises(UnusableModel):
            read_weights(shaped, {**described, name: wrong})
