import json

import pytest

from apps.artifacts import open_file
from apps.datasets.models import Dataset
from apps.feedback.models import Feedback
from tests.apps import making

pytestmark = pytest.mark.django_db


@pytest.fixture
def version():
    return making.version("v1")


def rate(client, answer, rating=4, **fields):
    return client.post("/api/v1/feedback/", {"answer": getattr(answer, "pk", answer), "rating": rating, **fields})


def test_the_first_rating_is_created_and_the_second_updates_it(as_viewer, viewer, version):
    answer = making.answer(version, viewer)

    first, second = rate(as_viewer, answer, 4, comment="good"), rate(as_viewer, answer, 5)

    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json()["id"] == first.json()["id"]
    row = Feedback.objects.get()
    assert (row.rating, row.comment) == (5, "good")


@pytest.mark.parametrize("rating", [0, 6, -1, 4.5, 4.0, "5", "five", None, True, [5], 10**12])
def test_a_rating_is_a_whole_number_from_one_to_five(as_viewer, viewer, version, rating):
    response = rate(as_viewer, making.answer(version, viewer), rating)

    assert response.status_code == 400
    assert "rating" in response.json()["errors"]
    assert not Feedback.objects.exists()


def test_an_unknown_answer_is_not_found(as_viewer):
    assert rate(as_viewer, "01ARZ3NDEKTSV4RRFFQ69G5FAV").status_code == 404


def test_nobody_rates_anothers_answer_but_an_operator_may(as_viewer, as_operator, admin, version):
    answer = making.answer(version, admin)

    assert rate(as_viewer, answer).status_code == 403
    assert rate(as_operator, answer, 1, correction="Hydrogen and oxygen.").status_code == 201


def test_ratings_are_listed_with_question_answer_and_version_and_filtered(as_viewer, viewer, version):
    for rating in (1, 5):
        rate(as_viewer, making.answer(version, viewer, f"What is {rating}?"), rating)

    rows = as_viewer.get("/api/v1/feedback/").json()["results"]

    assert [(r["question"], r["rating"], r["version_name"], r["user"]) for r in rows] == [
        ("What is 5?", 5, "v1", "viewer"),
        ("What is 1?", 1, "v1", "viewer"),
    ]
    for query, count in (("rating=1", 1), (f"version={version.pk}", 2), ("version=other", 0), ("new=true", 2), ("new=false", 0)):
        assert len(as_viewer.get(f"/api/v1/feedback/?{query}").json()["results"]) == count, query


def test_new_ratings_become_one_dataset_and_only_once(as_operator, operator, version):
    rate(as_operator, making.answer(version, operator), 1, correction="Hydrogen and oxygen.")

    response = as_operator.post("/api/v1/feedback/dataset/", {"name": "week 1"})

    row = response.json()
    assert (response.status_code, row["name"], row["origin"]) == (201, "week 1", "feedback")
    stored = json.loads(open_file(Dataset.objects.get().files[0]["path"]).read())
    assert (stored["question"], stored["answer"], stored["rating"], stored["correction"]) == ("What is water?", "H2O.", 1, "Hydrogen and oxygen.")
    assert as_operator.post("/api/v1/feedback/dataset/").status_code == 409
