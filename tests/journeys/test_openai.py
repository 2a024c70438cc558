"""The official `openai` client works unchanged."""

import openai
import pytest

from tests.stack import statement_of


@pytest.fixture(scope="module")
def client(stack):
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.token, max_retries=0, timeout=90) as client:
        yield client


@pytest.fixture(scope="module")
def knowing(stack) -> str:
    """The second version's name: it knows its facts, live or not."""
    return max(
        (row for row in stack.rows("/api/v1/model-versions/") if row["kind"] == "moe" and row["evaluation"]),
        key=lambda row: row["evaluation"]["bleu"],
    )["name"]


def test_models_are_listed(stack, client, knowing):
    assert knowing in {model.id for model in client.models.list()}


def test_a_chat_is_answered_whole_and_in_pieces_alike(client, knowing):
    messages = [{"role": "user", "content": "What is a compass?"}]
    whole = client.chat.completions.create(model=knowing, messages=messages, max_tokens=40, temperature=0)
    assert whole.choices[0].message.content == statement_of("Compass")
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(
        model=knowing, messages=messages, max_tokens=41, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == statement_of("Compass")
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_completion_is_written(client, knowing):
    assert client.completions.create(model=knowing, prompt="A compass is", max_tokens=8, temperature=0).choices[0].text is not None


def test_errors_are_the_client_s_own_kinds(stack, client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hello"}])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="live", messages=[])
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="wrong", max_retries=0) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
