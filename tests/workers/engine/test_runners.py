"""Each runner against the model's own forward."""

import numpy as np
import pytest
import torch

from workers.engine import Chunk
from workers.engine.torch_runner import open_torch_runner
from workers.moe import load_model

SHAPES = {
    "softmax router": {},
    "sigmoid router": {"router": "sigmoid", "n_shared_experts": 2, "first_dense_layers": 1, "d_dense": 24},
    "dense": {"n_experts": 0, "top_k": 0, "d_expert": 0, "d_dense": 40},
}
RUNNERS = {"torch": open_torch_runner}


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
