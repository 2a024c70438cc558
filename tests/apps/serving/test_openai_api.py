"""OpenAI's official client against a live server, unchanged."""

import openai
import pytest

from apps.serving.models import Answer
from tests.apps import making
from tests.apps.conftest import Api

QUESTION = [{"role": "user", "content": "What is water?"}]


@pytest.fixture
def live(transactional_db, answers_with):
    version = making.version("v1", state="live")
    answers_with(version)
    return version


@pytest.fixture
def client(live, live_server, person) -> openai.OpenAI:
    token = Api(person("viewer")).defaults["HTTP_AUTHORIZATION"].removeprefix("Bearer ")
    return openai.OpenAI(base_url=f"{live_server.url}/v1", api_key=token, max_retries=0)


def test_the_client_chats(client):
    answer = client.chat.completions.create(model="dsportal", messages=QUESTION)

    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "You asked: What is water?"
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "v1")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_the_client_streams_and_is_told_the_usage_last(client):
    chunks = list(client.chat.completions.create(model="v1", messages=QUESTION, stream=True, stream_options={"include_usage": True}))

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "You asked: What is water?"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


async def _ask_asynchronously(client):
    stream = await client.chat.completions.create(model="dsportal", messages=QUESTION, stream=True)
    return [chunk.choices[0].delta.content or "" async for chunk in stream]


def test_the_asynchronous_client_streams(client):
    import asyncio

    asynchronous = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0)

    assert "".join(asyncio.run(_ask_asynchronously(asynchronous))) == "You asked: What is water?"


def test_the_client_completes_with_and_without_a_stream(client):
    whole = client.completions.create(model="v1", prompt="What is water?", max_tokens=64)
    pieces = client.completions.create(model="v1", prompt=["What is water?"], stream=True, temperature=0.5)

    assert whole.choices[0].text == "You asked: What is water?"
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_the_client_lists_versions_and_what_is_live(client):
    assert [model.id for model in client.models.list()] == ["dsportal", "v1"]
    assert client.models.retrieve("v1").owned_by == "dsportal"


def test_content_in_parts_and_a_developers_message_are_read(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "ice?"}]},
    ]

    assert client.chat.completions.create(model="v1", messages=messages).choices[0].message.content == "You asked: What is ice?"
    assert Answer.objects.get().messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(("stop", "text"), [("water", "You asked: What is"), (["zzz", " is"], "You asked: What")])
def test_stop_is_a_text_or_a_list(client, stop, text):
    assert client.chat.completions.create(model="v1", messages=QUESTION, stop=stop).choices[0].message.content == text


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_is_told_as_the_reason(client, limit):
    choice = client.chat.completions.create(model="v1", messages=QUESTION, **{limit: 2}).choices[0]

    assert choice.finish_reason == "length"


def test_an_unknown_model_is_their_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)

    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_wrong_key_is_their_authentication_error(client):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(model="v1", messages=QUESTION)


@pytest.mark.parametrize("bad", [
    {"n": 2}, {"temperature": 3}, {"max_tokens": 0}, {"logprobs": True}, {"tools": [{"type": "function"}]}, {"frequency_penalty": 1},
    {"messages": []}, {"messages": [{"role": "robot", "content": "hi"}]}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [{"role": "user", "content": ""}]}, {"messages": [{"role": "user", "content": "x" * 100_000}]}, {"stop": ["x"] * 9},
    {"messages": [{"role": "user", "content": "a\0b"}]},
])  # fmt: skip
def test_what_cannot_be_honoured_is_their_bad_request(client, bad):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "v1", "messages": QUESTION, **bad})

    assert refused.value.type == "invalid_request_error"
    assert refused.value.body["message"]


def test_a_question_that_does_not_fit_the_model_is_a_status_also_when_streaming(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="v1", messages=[{"role": "user", "content": "word " * 2000}], stream=True)
