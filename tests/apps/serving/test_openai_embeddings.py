"""Embeddings, asked for by OpenAI's official client."""

import base64

import numpy as np
import openai
import pytest

from tests.apps.answering import Echo, tokenizer
from tests.apps.serving.test_openai_api import client, live  # noqa: F401 — fixtures

TEXTS = ["What is water?", "水是什么?", "water water water"]


def expected(text: str) -> np.ndarray:
    """The worker's model has one dimension a token."""
    counts = np.bincount(tokenizer().encode(text), minlength=tokenizer().vocab_size)
    return counts / np.linalg.norm(counts)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_texts_are_embedded_in_their_order(client, encoding):  # noqa: F811
    found = client.embeddings.create(model="dsportal", input=TEXTS, **encoding)

    assert [item.index for item in found.data] == [0, 1, 2]
    for item, text in zip(found.data, TEXTS, strict=True):
        vector = np.frombuffer(base64.b64decode(item.embedding), "<f4") if isinstance(item.embedding, str) else item.embedding
        np.testing.assert_allclose(vector, expected(text), atol=1e-6)
    assert found.usage.prompt_tokens == sum(len(tokenizer().encode(text)) for text in TEXTS)
    assert found.model == "v1"


@pytest.mark.parametrize("bad", [
    {"dimensions": 8}, {"input": []}, {"input": [1, 2, 3]}, {"input": ""}, {"input": "x " * 2000}, {"input": ["x"] * 257}, {"encoding_format": "hex"},
])  # fmt: skip
def test_what_cannot_be_embedded_is_their_bad_request(client, bad):  # noqa: F811
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(**{"model": "v1", "input": "water", **bad})


def test_a_version_without_hidden_states_says_so(client, monkeypatch):  # noqa: F811
    monkeypatch.delattr(Echo, "hidden_states")
    with pytest.raises(openai.BadRequestError, match="ONNX"):
        client.embeddings.create(model="v1", input="water")
