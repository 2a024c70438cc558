from contextlib import closing

import pytest
import torch

from workers.compression import measure
from workers.compression.measure import compare, speeds
from workers.engine import Engine, open_engine
from workers.moe import save_model

BATCHES = ["batch_1", "batch_8", "batch_32"]


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    """Of a model of few words: its likeliest token is the end wherever the first number of its state is positive."""
    model = make_model(tie_embeddings=False)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.weight[0] = 1.0
        model.head.weight.zero_()
        model.head.weight[tokenizer.end_id, 0] = 1.0
    save_model(tmp_path / "brief", model, tokenizer, "")
    return tmp_path / "brief"


def test_speed_is_that_of_decoding_as_many_tokens_whatever_a_model_would_say(folder, prompts, monkeypatch):
    with closing(open_engine(folder)) as engine:
        assert max(completion.tokens for completion in engine.generate_all(prompts, 20)) < measure.DECODED
    written = []

    def noted(engine, asked, most, generate_all=Engine.generate_all):
        completions = generate_all(engine, asked, most)
        written.extend((len(asked), completion.tokens, most) for completion in completions)
        return completions

    monkeypatch.setattr(Engine, "generate_all", noted)
    speeds([folder], prompts)
    assert {together for together, _, _ in written} == {1, 8, 32}
    assert all(tokens == most for _, tokens, most in written)


def test_a_model_is_as_fast_as_itself_and_says_the_same(make_model, save, prompts, monkeypatch):
    monkeypatch.setattr(measure, "LEAST_SECONDS", 0.05)
    folder = save(make_model())
    found = compare(folder, folder, prompts)
    assert found["greedy_agreement"] == found["size_ratio"] == 1.0
    for told in ("speed_ratio", "tokens_per_second_before", "tokens_per_second_after", "prompt_ms_before", "prompt_ms_after"):
        assert list(found[told]) == BATCHES
        assert all(value > 0 for value in found[told].values())
