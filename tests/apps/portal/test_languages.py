"""The pages and the refusals in Simplified Chinese; the rows stay in English."""

import html
import re

import pytest
from django.urls import reverse

from apps.experiments import services as experiments
from apps.jobs.models import Job
from apps.registry.models import GateDecision
from tests.apps import making

CHINESE = {"HTTP_ACCEPT_LANGUAGE": "zh-CN,zh;q=0.9,en;q=0.5"}
PAGES = (
    "home", "datasets", "training", "training_new", "models", "compression", "experiments", "chat", "monitoring", "feedback", "advisor", "api", "audit",
    "help", "users",
)  # fmt: skip
OURS = re.compile(r"[A-Z]?[a-z]+(?: [a-z]+){2,}")  # three English words in a row
NAMES = re.compile(r"<(script|style|code|pre|kbd|textarea)\b.*?</\1>|<[^>]*>", re.DOTALL)


@pytest.fixture
def furnished(admin):
    """A dataset, a live version and one that its gate refuses, an experiment, a job that failed."""
    data = making.processed(admin)
    held_out = data.current_run.evaluation_sets.get()
    live, other = making.version("v1", state="live", run=data.current_run), making.version("v2", run=data.current_run)
    making.evaluated(live, held_out, bleu=60.0)
    making.evaluated(other, held_out, bleu=62.9)
    experiments.create(control=live, treatment=other, actor=admin)
    job = making.training_job(
        data, status=Job.Status.FAILED, error="The machine ran out of memory. Use a smaller model, batch or dataset, or a machine with more of it."
    )
    return live, other, job


def english_in(page: str) -> list[str]:
    words = " ".join(re.findall(r'(?:aria-label|placeholder|title)="([^"]*)"', page))
    text = html.unescape(NAMES.sub("\n", page[page.find("<body") + 1 :]) + "\n" + words)
    return [found for found in OURS.findall(text) if "water" not in found.lower()]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_chinese_from_top_to_bottom(client, admin, furnished, name):
    client.force_login(admin)

    page = client.get(reverse(name), **CHINESE).content.decode()

    assert '<html lang="zh-Hans"' in page
    assert english_in(page) == []


def test_the_table_of_endpoints_says_in_chinese_what_each_does(client, admin):
    client.force_login(admin)

    assert english_in(client.get(reverse("api_endpoints"), **CHINESE).content.decode()) == []


def test_a_versions_page_and_a_refused_promotion_are_chinese_while_the_decision_is_kept_in_english(client, admin, furnished):
    _live, other, _job = furnished
    client.force_login(admin)

    page = client.post(reverse("promote", args=[other.pk]), follow=True, **CHINESE).content.decode()

    assert "BLEU 62.9 低于 63.0" in page
    assert english_in(page) == []
    assert "62.9 is below 63.0" in GateDecision.objects.get().rules[0]["reason"]


def test_rest_answers_in_the_language_that_is_asked_for_and_in_english_where_none_is(as_admin):
    path = "/api/v1/datasets/"

    assert as_admin.post(path, {"name": ""}, **CHINESE).json()["title"] == "请求有误"
    assert as_admin.post(path, {"name": ""}).json()["title"] == "The request has mistakes"
