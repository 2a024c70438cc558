import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from workers.engine.sampling import SamplingParams, adjust, draw, logprobs_of


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (0.8, 12, 0.6, 0.0), (1.2, 0, 1.0, 0.1), (1.5, 20, 0.95, 0.2)],
)
def test_tokens_are_drawn_as_transformers_would(temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(0).normal(0, 2, 40).astype(np.float32)
    expected = torch.from_numpy(logits)[None]
    warpers = [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k or 40), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    for warp in warpers:
        expected = warp(None, expected)
    probabilities = expected.softmax(-1)[0].numpy()

    random, draws = np.random.default_rng(1), 20_000
    params = SamplingParams(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    counts = np.bincount([draw(logits, params, random.random()) for _ in range(draws)], minlength=40)

    assert not counts[probabilities == 0].any()
    deviation = np.sqrt(draws * probabilities * (1 - probabilities))
    assert (abs(counts - draws * probabilities) <= 4.5 * deviation + 1e-3).all()


def test_a_tiny_temperature_is_the_most_likely_token():
    logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    assert draw(logits, SamplingParams(max_tokens=1, temperature=1e-6), 0.9) == 1


def test_a_repetition_is_penalised_as_in_transformers():
    logits = np.random.default_rng(2).normal(0, 2, 30).astype(np.float32)
    so_far = [3, 7, 7, 29]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([so_far]), torch.from_numpy(logits.copy())[None])[0].numpy()

    given = adjust(logits, SamplingParams(max_tokens=1, repetition_penalty=1.7), set(so_far), {})

    np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_biases_and_penalties_are_those_of_openai():
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence: the formula of its documentation."""
    logits = np.random.default_rng(3).normal(0, 2, 30).astype(np.float32)
    said = torch.bincount(torch.tensor([4, 4, 4, 9]), minlength=30)
    expected = torch.from_numpy(logits) - said * 0.6 - (said > 0).float() * 0.25
    expected[11] += 5.0

    params = SamplingParams(max_tokens=1, frequency_penalty=0.6, presence_penalty=0.25, logit_bias=((11, 5.0),))

    np.testing.assert_allclose(adjust(logits, params, {1, 4, 9}, {4: 3, 9: 1}), expected.numpy(), rtol=1e-6)


def test_logprobs_are_the_models_own():
    logits = np.random.default_rng(4).normal(0, 3, 50).astype(np.float32)
    expected = torch.from_numpy(logits).double().log_softmax(0)

    found = logprobs_of(logits, 17, 5)

    assert found.logprob == pytest.approx(expected[17].item())
    values, ids = expected.topk(5)
    assert [t.token for t in found.top] == ids.tolist()
    assert [t.logprob for t in found.top] == pytest.approx(values.tolist())


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"logprobs": -1},
        {"stop": ("",)},
    ],
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        SamplingParams(**{"max_tokens": 1, **wrong})
