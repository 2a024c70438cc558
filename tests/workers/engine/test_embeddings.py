import numpy as np
import pytest
import torch

from workers.engine import Engine, ParameterRefused, PromptTooLong, SamplingParams, open_engine
from workers.engine.torch_runner import open_torch_runner

TEXTS = ["What is sugar?", "光合作用是什么？" * 4, "It was written in 1859, they say. " * 2]


@pytest.fixture(params=["fused", "torch"])
def reading(request, folder, tokenizer):
    if request.param == "fused":
        engine = open_engine(folder, max_batch=4)
    else:
        engine = Engine(open_torch_runner(folder, threads=1, max_batch=4, max_seq_len=96), tokenizer, prefill_tokens=16)
    yield engine
    engine.close()


def expected(model, tokenizer, text: str) -> np.ndarray:
    """From the model's own modules: what its head is given."""
    seen: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(torch.tensor([tokenizer.encode(text)]))
    hook.remove()
    return torch.nn.functional.normalize(seen[0][0].mean(0), dim=0).numpy()


def test_an_embedding_is_the_mean_of_the_last_hidden_states_alone_and_while_others_are_answered(reading, model, tokenizer):
    others = [reading.submit([{"role": "user", "content": "Who wrote it?"}], SamplingParams(max_tokens=20)) for _ in range(3)]
    tickets = [reading.embed(text) for text in TEXTS * 2]

    for text, ticket in zip(TEXTS * 2, tickets, strict=True):
        assert ticket.result(20).prompt_tokens == len(tokenizer.encode(text))
        np.testing.assert_allclose(ticket.embedding, expected(model, tokenizer, text), atol=1e-5)
    assert len({other.result(20).text for other in others}) == 1
    assert reading.stats().running == 0


def test_a_text_that_cannot_be_embedded_is_refused(reading):
    with pytest.raises(PromptTooLong):
        reading.embed("光" * 300)
    with pytest.raises(ParameterRefused, match="without a token"):
        reading.embed("")
