"""OpenAI's official client against a live server, unchanged."""

import json

import openai
import pytest
from prometheus_client import REGISTRY

from apps.monitoring import names
from apps.redis import connection
from apps.serving.answer_log import answers as logged
from tests.apps import making
from tests.apps.conftest import Api
from workers.tasks.answers import engines

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
    assert logged().get().messages[0] == {"role": "system", "content": "Be brief."}


def test_several_answers_to_one_question_are_each_a_choice_and_a_row(client):
    answer = client.chat.completions.create(model="v1", messages=QUESTION, n=3, temperature=1, seed=5)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"You asked: What is water?"}
    rows = logged()
    assert sorted(row.parameters["seed"] for row in rows) == [5, 6, 7]
    assert answer.usage.completion_tokens == sum(row.completion_tokens for row in rows)
    assert answer.usage.prompt_tokens == rows[0].prompt_tokens


def test_an_answer_keeps_to_the_schema_or_expression_that_is_asked_for(client):
    """The model would say something else."""
    schema = {"type": "object", "properties": {"wet": {"enum": [True]}}, "required": ["wet"], "additionalProperties": False}
    response_format = {"type": "json_schema", "json_schema": {"name": "wetness", "strict": True, "schema": schema}}

    answer = client.chat.completions.create(model="v1", messages=QUESTION, response_format=response_format).choices[0]
    pieces = client.completions.create(model="v1", prompt="What is water?", stream=True, extra_body={"guided_regex": "(ice|ICE)!"})
    completed = client.completions.create(model="v1", prompt="What is water?", extra_body={"response_format": response_format})

    assert (json.loads(answer.message.content), answer.finish_reason) == ({"wet": True}, "stop")
    assert "".join(piece.choices[0].text for piece in pieces) in ("ice!", "ICE!")
    assert json.loads(completed.choices[0].text) == {"wet": True}


def test_the_next_turn_says_how_much_of_its_prompt_was_known(client):
    def ask(messages):
        return client.chat.completions.create(model="v1", messages=messages, temperature=0)

    first = ask(QUESTION)
    turns = [*QUESTION, {"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "What is ice?"}]
    second = ask(turns)

    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    assert second.choices[0].message.content == "You asked: What is ice?"


@pytest.mark.parametrize("temperature", [0, 1])
def test_several_answers_are_streamed_by_their_index(client, temperature):
    texts, ended = ["", ""], []
    for chunk in client.chat.completions.create(model="v1", messages=QUESTION, n=2, temperature=temperature, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ended += [choice.index] if choice.finish_reason else []

    assert texts == ["You asked: What is water?"] * 2
    assert ended == [0, 1]
    assert connection().zcard(names.IN_FLIGHT) == 0


def test_logprobs_come_whole_in_pieces_and_from_the_cache_alike(client):
    asking = {"model": "v1", "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asking).choices[0].logprobs.content
    cached = client.chat.completions.create(**asking).choices[0].logprobs.content
    chunks = list(client.chat.completions.create(**{**asking, "max_tokens": 99}, stream=True))
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]

    assert [row.cached for row in logged().order_by("id")] == [False, True, False]
    assert "".join(token.token for token in whole) == "You asked: What is water?"
    assert bytes(byte for token in whole for byte in token.bytes) == b"You asked: What is water?"
    assert all(token.logprob == pytest.approx(0) for token in whole)  # all others are ruled out
    assert all(token.top_logprobs[0].token == token.token and token.top_logprobs[1].logprob == -9999.0 for token in whole)
    assert whole == cached == streamed
    assert chunks[0].choices[0].logprobs is None  # it says no text, only whose


def test_a_completion_tells_logprobs_in_its_own_shape(client):
    told = client.completions.create(model="v1", prompt="What is water?", logprobs=1).choices[0].logprobs

    assert "".join(told.tokens) == "You asked: What is water?"
    assert told.token_logprobs == pytest.approx([0] * len(told.tokens))
    assert [list(top) for top in told.top_logprobs] == [[token] for token in told.tokens]
    assert told.text_offset[1:] == [sum(map(len, told.tokens[:n])) for n in range(1, len(told.tokens))]


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
    {"n": 9}, {"temperature": 3}, {"max_tokens": 0}, {"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21},
    {"tools": [{"type": "function"}]}, {"frequency_penalty": 3}, {"presence_penalty": -3}, {"logit_bias": {"12": 101}}, {"logit_bias": {"a": 1}},
    {"response_format": {"type": "json_schema"}}, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
    {"response_format": {"type": "xml"}}, {"extra_body": {"guided_regex": "(open"}},
    {"logit_bias": {"99999": 1}}, {"extra_body": {"min_p": 2}}, {"extra_body": {"repetition_penalty": 0}},
    {"messages": []}, {"messages": [{"role": "robot", "content": "hi"}]}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [{"role": "user", "content": ""}]}, {"messages": [{"role": "user", "content": "x" * 100_000}]}, {"stop": ["x"] * 9},
    {"messages": [{"role": "user", "content": "a\0b"}]},
    {"functions": [{"name": "f"}]}, {"tool_choice": "required"}, {"modalities": ["text", "audio"]}, {"web_search_options": {}},
    {"extra_body": {"guided_json": {}}}, {"extra_body": {"guided_choice": ["yes"]}}, {"extra_body": {"min_tokens": 5}}, {"extra_body": {"best_of": 2}},
])  # fmt: skip
def test_what_cannot_be_honoured_is_their_bad_request(client, bad):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "v1", "messages": QUESTION, **bad})

    assert refused.value.type == "invalid_request_error"
    assert refused.value.body["message"]
    assert "Value error" not in refused.value.body["message"]


@pytest.mark.parametrize("nothing", [
    {"stream": None}, {"tools": []}, {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}, {"tool_choice": "auto"},
    {"stop": []}, {"modalities": ["text"]}, {"extra_body": {"best_of": 1, "min_tokens": 0, "ignore_eos": False, "echo": False, "unheard_of": 1}},
])  # fmt: skip
def test_what_asks_for_nothing_is_let_pass(client, nothing):
    assert client.chat.completions.create(model="v1", messages=QUESTION, **nothing).choices[0].message.content == "You asked: What is water?"


@pytest.mark.parametrize(("endpoint", "param"), [("chat", "messages"), ("completions", "prompt"), ("embeddings", "input")])
def test_a_text_that_is_too_long_is_told_by_the_code_that_clients_look_for(client, endpoint, param):
    text = "word " * 2000
    ask = {
        "chat": lambda: client.chat.completions.create(model="v1", messages=[{"role": "user", "content": text}]),
        "completions": lambda: client.completions.create(model="v1", prompt=text),
        "embeddings": lambda: client.embeddings.create(model="v1", input=text),
    }[endpoint]
    with pytest.raises(openai.BadRequestError) as refused:
        ask()

    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", param)


def test_what_the_asker_got_wrong_is_no_failure_of_the_version(client, live):
    def counted(outcome: str) -> float:
        labels = {"version": live.pk, "route": "openai", "tenant": "token", "outcome": outcome}
        return REGISTRY.get_sample_value(names.REQUESTS_TOTAL, labels) or 0.0

    invalid, failed = counted("invalid"), counted("error")
    for _ in range(2):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="v1", messages=[{"role": "user", "content": "word " * 2000}])

    assert (counted("invalid") - invalid, counted("error") - failed) == (2, 0)


def test_a_form_without_an_end_is_a_bad_request_in_few_words(client):
    form = {"type": "object", "additionalProperties": False, "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="v1", messages=QUESTION, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": form}}
        )

    assert refused.value.param == "response_format"
    assert len(refused.value.body["message"]) < 300


def test_an_address_that_is_not_there_and_a_key_used_for_something_else_are_told_in_their_form(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="v1", input="What is water?")
    key = {"Idempotency-Key": "once"}
    client.chat.completions.create(model="v1", messages=QUESTION, extra_headers=key)
    with pytest.raises(openai.UnprocessableEntityError) as other:
        client.chat.completions.create(model="v1", messages=QUESTION, max_tokens=3, extra_headers=key)

    assert missing.value.type == other.value.type == "invalid_request_error"
    assert "another body" in other.value.body["message"]


def test_a_question_that_does_not_fit_the_model_is_a_status_also_when_streaming(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="v1", messages=[{"role": "user", "content": "word " * 2000}], stream=True)


def test_a_model_that_fails_in_the_middle_ends_the_stream_with_an_error_and_not_with_silence(client, live, monkeypatch):
    runner = engines._held[live.pk].engine._runner
    forward, calls = runner.forward, []

    def failing(chunks):
        calls.append(chunks)
        if len(calls) > 4:
            raise MemoryError
        return forward(chunks)

    monkeypatch.setattr(runner, "forward", failing)
    heard = ""
    with pytest.raises(openai.APIError, match="failed while it answered") as failed:
        for chunk in client.chat.completions.create(model="v1", messages=QUESTION, stream=True):
            heard += chunk.choices[0].delta.content or ""

    assert failed.value.type == "server_error"
    assert "You asked: What is water?".startswith(heard)
