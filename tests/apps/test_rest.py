"""Bodies that come and go past DRF's own way say the same as by it."""

from types import SimpleNamespace

import pytest
from rest_framework import serializers

from apps.rest import FixedSerializer
from apps.serving.api import GenerateInput, GenerateOutput


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "水?"},
        {"prompt": "a", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "stop": ["\n"], "version": "v1", "image": None},
        {"prompt": 5, "max_tokens": "12", "version": "", "nobody": "knows"},
    ],
)
def test_a_body_is_read_as_drf_reads_it(body):
    ordinary = GenerateInput(data=body)
    assert ordinary.is_valid()
    assert GenerateInput.read(body) == dict(ordinary.validated_data)


def test_what_was_not_given_is_nobody_elses():
    GenerateInput.read({"prompt": "a"})["stop"].append("b")
    assert GenerateInput.read({"prompt": "a"})["stop"] == []


@pytest.mark.parametrize(
    "body", [{}, {"prompt": ""}, {"prompt": "a", "max_tokens": 0}, {"prompt": "a", "seed": "x"}, {"prompt": None}, [], None, "a"]
)
def test_a_body_with_a_mistake_is_left_to_drf_to_say(body):
    assert GenerateInput.read(body) is None
    assert not GenerateInput(data=body).is_valid()


def test_an_answer_is_written_as_drf_writes_it():
    version = SimpleNamespace(pk="1", name="v1")
    pending = SimpleNamespace(
        id="2", text="水", route=SimpleNamespace(version=version), cached=True, finish_reason="stop", prompt_tokens=3, completion_tokens=4,
        latency_ms=1.25, first_token_ms=None,
    )  # fmt: skip
    assert GenerateOutput.written(pending) == GenerateOutput(pending).data


def test_fields_of_lists_are_written_too():
    class Listed(FixedSerializer):
        names = serializers.ListField(child=serializers.CharField())

    assert Listed.written(SimpleNamespace(names=["a", "b"])) == {"names": ["a", "b"]}
