import pytest

from apps.feedback.models import Feedback
from tests.apps import making

pytestmark = pytest.mark.django_db


@pytest.fixture
def arms():
    return making.version("v1", state="live"), making.version("v2")


def create(client, arms, **fields):
    return client.post("/api/v1/experiments/", {"control": arms[0].pk, "treatment": arms[1].pk, **fields})


def test_an_experiment_is_a_draft_then_runs_once_then_is_over(as_operator, arms):
    row = create(as_operator, arms, split=0.2, metrics=["rating"]).json()
    url = f"/api/v1/experiments/{row['id']}/"

    assert (row["status"], row["split"], row["metrics"], row["name"]) == ("draft", 0.2, ["rating"], "v1 against v2")
    assert as_operator.post(f"{url}stop/").status_code == 409
    assert as_operator.post(f"{url}start/").json()["status"] == "running"
    assert as_operator.post(f"{url}start/").status_code == 409
    assert as_operator.post(f"{url}stop/").json()["status"] == "stopped"
    assert [r["status"] for r in as_operator.get("/api/v1/experiments/?status=stopped").json()["results"]] == ["stopped"]


def test_only_one_experiment_splits_the_traffic_at_a_time(as_operator, arms):
    first, second = create(as_operator, arms).json(), create(as_operator, arms).json()
    as_operator.post(f"/api/v1/experiments/{first['id']}/start/")

    response = as_operator.post(f"/api/v1/experiments/{second['id']}/start/")

    assert response.status_code == 409
    assert "Another experiment is running" in response.json()["detail"]


@pytest.mark.parametrize(("fields", "field", "status"), [
    ({"split": 0}, "split", 400), ({"split": 1}, "split", 400), ({"split": "half"}, "split", 400), ({"metrics": ["luck"]}, "metrics", 400),
    ({"treatment": "nobody"}, "treatment", 404), ({"control": None}, "control", 400),
])  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused_at_its_field(as_operator, arms, fields, field, status):
    response = create(as_operator, arms, **fields)

    assert response.status_code == status
    assert field in response.json()["errors"]


def test_a_version_is_not_compared_with_itself(as_operator, arms):
    assert create(as_operator, (arms[0], arms[0])).status_code == 400


def test_results_count_each_arm_and_rate_it_with_an_interval(as_operator, operator, arms):
    row = create(as_operator, arms).json()
    as_operator.post(f"/api/v1/experiments/{row['id']}/start/")
    for arm, version, ratings in (("control", arms[0], (2, 3, 2, 3)), ("treatment", arms[1], (5, 4, 5, 4))):
        for rating in ratings:
            answer = making.answer(version, operator, experiment_id=row["id"], arm=arm, latency_ms=80.0)
            Feedback.objects.create(answer=answer, rating=rating)

    results = as_operator.get(f"/api/v1/experiments/{row['id']}/results/").json()

    control, treatment = results["arms"]["control"], results["arms"]["treatment"]
    assert (control["answers"], control["rating"]["value"], treatment["rating"]["value"]) == (4, 2.5, 4.5)
    assert control["rating"]["low"] < 2.5 < control["rating"]["high"]
    assert results["rating_difference"] == 2.0
    assert results["rating_p_value"] < 0.001
    assert "v2 is rated better" in results["verdict"]


def test_without_ratings_the_verdict_is_that_there_are_too_few(as_viewer, as_operator, arms):
    row = create(as_operator, arms).json()

    assert "Too few ratings" in as_viewer.get(f"/api/v1/experiments/{row['id']}/results/").json()["verdict"]
