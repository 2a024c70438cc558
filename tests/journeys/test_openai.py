"""The official `openai` client for Python works unchanged. Those for Node and of LangChain are in files of their own."""

import math

import openai
import pytest

from tests.stack import statement_of

QUESTION = [{"role": "user", "content": "What is a compass?"}]


@pytest.fixture(scope="module")
def client(stack):
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.token, max_retries=0, timeout=90) as client:
        yield client


def test_models_are_listed(stack, client, knowing):
    assert knowing in {model.id for model in client.models.list()}


def test_a_chat_is_answered_whole_and_in_pieces_alike(client, knowing):
    whole = client.chat.completions.create(model=knowing, messages=QUESTION, max_tokens=40, temperature=0)
    assert whole.choices[0].message.content == statement_of("Compass")
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(
        model=knowing, messages=QUESTION, max_tokens=41, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == statement_of("Compass")
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_the_client_s_own_reader_of_streams_puts_the_answer_together(client, knowing):
    with client.chat.completions.stream(model=knowing, messages=QUESTION, max_tokens=42, temperature=0) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        done = events.get_final_completion()
    assert "".join(pieces) == done.choices[0].message.content == statement_of("Compass")


def test_a_completion_is_written(client, knowing):
    assert client.completions.create(model=knowing, prompt="A compass is", max_tokens=8, temperature=0).choices[0].text is not None


def test_an_answer_ends_before_a_stop_string(client, knowing):
    words = statement_of("Compass").split()
    answer = client.chat.completions.create(model=knowing, messages=QUESTION, max_tokens=40, temperature=0, stop=[words[3]])
    assert answer.choices[0].message.content == " ".join(words[:3])
    assert answer.choices[0].finish_reason == "stop"


def test_several_choices_are_drawn_with_the_probability_of_each_token(client, knowing):
    asked = {"model": knowing, "messages": QUESTION, "max_tokens": 12, "temperature": 1.5, "seed": 7, "n": 3, "logprobs": True, "top_logprobs": 2}
    answer, again = (client.chat.completions.create(**asked) for _ in range(2))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [choice.message.content for choice in again.choices]
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace").strip() == choice.message.content
        assert all(len(token.top_logprobs) == 2 and math.exp(token.logprob) <= 1 for token in tokens)
    assert answer.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in answer.choices)


def test_embeddings_have_length_one_and_come_in_the_order_of_their_texts(client, knowing):
    texts = ["A compass points north.", "Bread is baked from dough."]
    both, second = client.embeddings.create(model=knowing, input=texts), client.embeddings.create(model=knowing, input=texts[1])
    assert [row.index for row in both.data] == [0, 1]
    assert all(math.isclose(math.hypot(*row.embedding), 1, rel_tol=1e-4) for row in both.data)
    assert both.data[1].embedding == pytest.approx(second.data[0].embedding, abs=1e-5)
    assert both.data[0].embedding != pytest.approx(second.data[0].embedding, abs=1e-2)


def test_errors_are_the_client_s_own_kinds_and_say_what_is_wrong(stack, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert (missing.value.code, missing.value.param, missing.value.type) == ("model_not_found", "model", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="live", messages=[])
    assert bad.value.param == "messages"
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="wrong", max_retries=0) as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"


def test_a_token_s_limit_is_told_by_headers_and_by_the_client_s_own_error(stack, knowing, token_for):
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=token_for(1), max_retries=0) as client:
        asked = {"model": knowing, "messages": QUESTION, "max_tokens": 4, "temperature": 0}
        first = client.chat.completions.with_raw_response.create(**asked)
        assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("1", "0")
        with pytest.raises(openai.RateLimitError) as refused:
            for _ in range(2):
                client.chat.completions.create(**asked)
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert (refused.value.type, refused.value.code) == ("rate_limit_error", "rate_limit_exceeded")
