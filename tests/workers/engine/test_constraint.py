import json
import re

import jsonschema
import pytest

from workers.engine import ParameterRefused, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "sure": {"type": "boolean"},
        "kind": {"enum": ["sugar", "光合作用"]},
        "years": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 1, "maxItems": 2},
    },
    "required": ["sure", "kind", "years"],
    "additionalProperties": False,
}


def ask(engine, question, **sampling):
    return engine.submit([{"role": "user", "content": question}], SamplingParams(**{"max_tokens": 70, **sampling}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_keep_to_a_schema_beside_others_that_are_free(engine, temperature):
    """The model is random: left to itself it writes nothing of the kind."""
    free = [ask(engine, q).result(20).text for q in ("a", "b", "c")]

    bound = [ask(engine, q, schema=json.dumps(SCHEMA), temperature=temperature, seed=3) for q in ("a", "b", "c", "d")]
    beside = [ask(engine, q) for q in ("a", "b", "c")]

    for ticket in bound:
        answer = ticket.result(20)
        assert answer.finish_reason == "stop", answer
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert [ticket.result(20).text for ticket in beside] == free


def test_answers_keep_to_a_regular_expression(engine):
    answers = {ask(engine, q, regex=r"(yes|no), since (18|19)\d\d", temperature=1.0, seed=n).result(20).text for n, q in enumerate("abcdef")}

    assert all(re.fullmatch(r"(yes|no), since (18|19)\d\d", answer) for answer in answers)
    assert len(answers) > 1


@pytest.mark.parametrize("wrong", [{"schema": "no JSON"}, {"schema": '{"type": "nonsense"}'}, {"regex": "(open"}, {"schema": "{}", "regex": "a"}])
def test_a_form_that_is_not_understood_is_refused(engine, wrong):
    with pytest.raises(ParameterRefused):
        ask(engine, "What", **wrong)
