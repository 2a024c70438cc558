import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from workers.engine.sampling import SamplingParams, draw


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (0.8, 12, 0.6)])
def test_tokens_are_drawn_as_transformers_would(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 2, 40).astype(np.float32)
    expected = torch.from_numpy(logits)[None]
    warpers = [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k or 40), TopPLogitsWarper(top_p)]
    for warp in warpers:
        expected = warp(None, expected)
    probabilities = expected.softmax(-1)[0].numpy()

    random, draws = np.random.default_rng(1), 20_000
    params = SamplingParams(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    counts = np.bincount([draw(logits, params, random) for _ in range(draws)], minlength=40)

    assert not counts[probabilities == 0].any()
    deviation = np.sqrt(draws * probabilities * (1 - probabilities))
    assert (abs(counts - draws * probabilities) <= 4.5 * deviation + 1e-3).all()


def test_a_tiny_temperature_is_the_most_likely_token():
    logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    assert draw(logits, SamplingParams(max_tokens=1, temperature=1e-6), np.random.default_rng(0)) == 1


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}, {"stop": ("",)}]
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        SamplingParams(**{"max_tokens": 1, **wrong})
