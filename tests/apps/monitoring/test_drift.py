"""Whether people ask about other things than before: told from chance, not from a figure somebody liked."""

import random

import pytest
from django.test import Client

from apps.monitoring import drift
from apps.monitoring.alerting import evaluate_alerts
from apps.redis import connection
from apps.serving.models import Answer
from tests.apps import making

pytestmark = pytest.mark.django_db

SEA = ["tide", "wave", "salt", "whale", "harbour", "anchor", "coral", "reef", "sail", "current", "shell", "gull", "mast", "shore"]
BREAD = ["flour", "yeast", "oven", "crust", "dough", "bran", "knead", "loaf", "rye", "bake", "rise", "crumb", "starter", "wheat"]


def questions(words: list[str], count: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return [f"What is the {drawn.choice(words)} of the {drawn.choice(words)} and {drawn.choice(words)}?" for _ in range(count)]


def far(asked: list[str]) -> float:
    return drift.distance_in_deviations([drift._words(each) for each in asked], drift.NEW_QUESTIONS)


def test_questions_of_the_same_kind_are_as_far_apart_as_chance_has_it():
    found = [far(questions(SEA, 500, seed)) for seed in range(8)]
    assert max(map(abs, found)) < 4
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_questions_about_something_else_are_noticed(share):
    new = questions(BREAD, round(100 * share), 1) + questions(SEA, round(100 * (1 - share)), 2)
    assert far(new + questions(SEA, 400, 3)) > 8


def test_characters_are_the_words_of_chinese():
    assert far([f"海{n}的潮汐" for n in range(500)]) < 4
    assert far([f"面包{n}怎么烤" for n in range(100)] + [f"海{n}的潮汐" for n in range(400)]) > 8


def test_the_same_question_asked_again_and_again_is_one(viewer):
    version = making.version("v1", state="live")

    def ask(prompts):
        key = len(prompts)
        Answer.objects.bulk_create(
            Answer(model_version=version, user=viewer, route="chat", prompt=p, prompt_key=f"{p}{key}"[:64], text="It is.") for p in prompts
        )

    ask(questions(SEA, 250, 1))
    ask(["What is flour?"] * 300)
    assert abs(drift.topic_drift()) < 4
    ask(questions(BREAD, 100, 1))
    assert drift.topic_drift() > 8


def test_a_few_questions_say_nothing(viewer):
    making.answer(making.version("v1"), viewer)
    assert drift.topic_drift() is None


def test_prometheus_hears_what_beat_measured():
    connection().flushdb()
    evaluate_alerts()

    said = Client().get("/metrics").content.decode()
    assert 'dsportal_alert_value{rule="disk"}' in said
    assert 'dsportal_alert_value{rule="p99_latency"}' not in said  # no request: nothing to judge
