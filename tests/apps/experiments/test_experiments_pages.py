"""Planning, reading and ending an experiment, in the browser."""

import pytest
from django.test import Client

from apps.experiments import services
from apps.experiments.models import Experiment
from apps.experiments.statistics import deviation_of, mean_interval, observations_needed
from apps.feedback.services import rate
from tests.apps import making


@pytest.fixture
def page(operator) -> Client:
    client = Client()
    client.force_login(operator)
    return client


@pytest.fixture
def versions(db):
    return making.version("v1", state="live"), making.version("v2")


def plan(versions, **changes) -> dict:
    return {"control": versions[0].pk, "treatment": versions[1].pk, "split": 50, "metrics": ["rating", "latency"], "start": "on", **changes}


def test_a_plan_is_started_at_once_and_shown(page, versions):
    answer = page.post("/experiments/", plan(versions))
    experiment = Experiment.objects.get()
    assert answer["Location"] == f"/experiments/{experiment.pk}/"
    assert (experiment.status, experiment.split, experiment.metrics) == ("running", 0.5, ["rating", "latency"])
    assert "Too few ratings yet" in page.get(answer["Location"]).content.decode()


def test_the_same_version_twice_is_refused_at_its_field_and_the_form_is_kept(page, versions):
    text = page.post("/experiments/", plan(versions, treatment=versions[0].pk, split=30)).content.decode()
    assert 'id="id_treatment_error"' in text
    assert 'value="30"' in text
    assert not Experiment.objects.exists()


def test_a_second_plan_is_kept_as_a_draft_while_one_runs(page, versions):
    page.post("/experiments/", plan(versions))
    told = page.post("/experiments/", plan(versions), follow=True).content.decode()
    assert "Another experiment is running" in told
    assert list(Experiment.objects.values_list("status", flat=True)) == ["draft", "running"]


def test_a_clear_result_names_the_winner_and_offers_to_promote_it(page, operator, versions):
    experiment = services.start(experiment=services.create(control=versions[0], treatment=versions[1], actor=operator), actor=operator)
    for arm, version, ratings in (("control", versions[0], (1, 2, 1, 2) * 5), ("treatment", versions[1], (5, 4, 5, 5) * 5)):
        for n, rating in enumerate(ratings):
            answer = making.answer(version, operator, f"Question {n}?", experiment=experiment, arm=arm)
            rate(answer=answer, rating=rating, user=operator)
    text = page.get(f"/experiments/{experiment.pk}/").content.decode()
    assert "v2 is rated better than v1" in text
    assert f'action="/models/{versions[1].pk}/promote/"' in text
    page.post(f"/experiments/{experiment.pk}/stop/")
    experiment.refresh_from_db()
    assert experiment.status == "stopped"


def test_a_viewer_reads_results_and_starts_nothing(viewer, operator, versions):
    client = Client()
    client.force_login(viewer)
    experiment = services.create(control=versions[0], treatment=versions[1], actor=operator)
    assert "/start/" not in client.get(f"/experiments/{experiment.pk}/").content.decode()
    assert client.post(f"/experiments/{experiment.pk}/start/").status_code == 403
    assert client.post("/experiments/", plan(versions)).status_code == 403


def test_one_version_alone_leads_to_training(page, db):
    making.version("v1")
    assert "Two versions are needed" in page.get("/experiments/").content.decode()


def test_the_number_of_ratings_needed_is_that_of_the_textbook():
    # Two-sample comparison of means, power 0.8, alpha 0.05, s = 1, d = 0.5: 63 in each group (Lehr's rule of thumb says 64).
    assert observations_needed(1.0, 0.5) == 63


def test_the_spread_is_found_back_from_the_interval():
    assert deviation_of(mean_interval(4, 12, 46)) == pytest.approx((10 / 3) ** 0.5)
