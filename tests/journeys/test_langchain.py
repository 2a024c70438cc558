"""LangChain's `langchain-openai` works unchanged: what is given here is what its documentation gives for a server of one's own."""

import math

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.stack import statement_of

QUESTION = "What is a compass?"


@pytest.fixture(scope="module")
def model(stack, knowing) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{stack.url}/v1", api_key=stack.token, model=knowing, temperature=0, max_tokens=43, max_retries=0, timeout=90)


def test_a_question_is_answered_with_its_usage(model):
    answer = model.invoke(QUESTION)
    assert answer.content == statement_of("Compass")
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > usage["output_tokens"] > 0


def test_a_stream_adds_up_to_the_answer_and_tells_its_usage(model):
    chunks = list(model.stream(QUESTION, stream_usage=True, max_tokens=44))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == statement_of("Compass")
    assert whole.usage_metadata["output_tokens"] > 0


def test_stop_several_choices_and_logprobs(model):
    words = statement_of("Compass").split()
    assert model.invoke(QUESTION, stop=[words[3]]).content == " ".join(words[:3])
    drawn = model.model_copy(update={"n": 2, "temperature": 1.5, "seed": 7, "logprobs": True, "max_tokens": 8})
    choices = drawn.generate([[HumanMessage(QUESTION)]]).generations[0]
    assert len(choices) == 2
    for choice in choices:
        scores = choice.message.response_metadata["logprobs"]["content"]
        assert scores
        assert all(score["logprob"] <= 0 for score in scores)


def test_an_answer_in_a_form_is_parsed(model):
    schema = {
        "title": "Thing",
        "type": "object",
        "properties": {"kind": {"enum": ["tool", "food"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    found = model.with_structured_output(schema, method="json_schema", strict=True).invoke(QUESTION)
    assert found["kind"] in ("tool", "food")


def test_texts_are_embedded(stack, knowing):
    embeddings = OpenAIEmbeddings(base_url=f"{stack.url}/v1", api_key=stack.token, model=knowing, check_embedding_ctx_length=False, max_retries=0)
    documents = embeddings.embed_documents(["A compass points north.", "Bread is baked from dough."])
    assert [math.hypot(*vector) for vector in documents] == pytest.approx([1, 1], abs=1e-4)
    assert embeddings.embed_query("A compass points north.") == pytest.approx(documents[0], abs=1e-5)


def test_refusals_are_openai_s_own_errors(stack, model, knowing, token_for):
    with pytest.raises(openai.NotFoundError):
        model.model_copy(update={"model_name": "no-such-model"}).invoke(QUESTION)
    limited = ChatOpenAI(base_url=f"{stack.url}/v1", api_key=token_for(1), model=knowing, max_tokens=4, max_retries=0)
    limited.invoke(QUESTION)
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(2):
            limited.invoke(QUESTION)
    assert int(refused.value.response.headers["retry-after"]) >= 1
