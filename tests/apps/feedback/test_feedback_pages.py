"""Ratings, corrections and the dataset they become, in the browser."""

import json

import pytest
from django.test import Client

from apps.datasets.models import Dataset
from apps.feedback import services
from apps.feedback.models import Feedback
from tests.apps import making


@pytest.fixture
def page(operator) -> Client:
    client = Client()
    client.force_login(operator)
    return client


@pytest.fixture
def rated(viewer):
    version = making.version("v1", state="live")

    def rate(rating: int, prompt: str = "What is water?", **said) -> Feedback:
        return services.rate(answer=making.answer(version, viewer, prompt), rating=rating, user=viewer, **said)[0]

    return rate


def test_without_ratings_the_page_says_how_the_first_one_comes(page):
    assert "No ratings yet" in page.get("/feedback/").content.decode()


def test_low_ratings_are_found_and_corrected_in_place(page, viewer, rated):
    low = rated(1, "What is iron?")
    rated(5, "What is gold?")
    listed = page.get("/feedback/?rating=low").content.decode()
    assert "What is iron?" in listed
    assert "What is gold?" not in listed
    answer = page.post(f"/feedback/{low.pk}/correct/", {"correction": "A metal.", "next": "/feedback/?rating=low"})
    low.refresh_from_db()
    assert answer["Location"] == "/feedback/?rating=low"
    assert (low.correction, low.rating, low.user) == ("A metal.", 1, viewer)
    assert "What is iron?" not in page.get("/feedback/?rating=low").content.decode()


def test_a_correction_never_leads_to_another_site(page, rated):
    answer = page.post(f"/feedback/{rated(1).pk}/correct/", {"correction": "A metal.", "next": "https://example.org/"})
    assert answer["Location"] == "/feedback/"


def test_new_ratings_become_a_dataset_that_is_processed_with_one_click(page, rated):
    rated(5)
    rated(2, "What is iron?")
    answer = page.post("/feedback/dataset/")
    dataset = Dataset.objects.get(origin="feedback")
    assert answer["Location"] == f"/datasets/{dataset.pk}/"
    assert dataset.runs.count() == 1
    assert page.get("/feedback/?new=1").content.decode().count('class="rated"') == 0
    again = page.post("/feedback/dataset/", follow=True).content.decode()
    assert "There are no new ratings" in again
    assert Dataset.objects.count() == 1


def test_the_export_holds_what_the_filter_shows(page, rated):
    rated(5)
    rated(2, "What is iron?", comment="wrong")
    lines = b"".join(page.get("/feedback/export.jsonl?rating=2").streaming_content).decode().splitlines()
    assert [(row["question"], row["rating"], row["comment"], row["version"]) for row in map(json.loads, lines)] == [
        ("What is iron?", 2, "wrong", "v1")
    ]


def test_a_viewer_reads_ratings_and_changes_nothing(viewer, rated):
    client = Client()
    client.force_login(viewer)
    low = rated(1)
    assert "/correct/" not in client.get("/feedback/").content.decode()
    assert client.post(f"/feedback/{low.pk}/correct/", {"correction": "x"}).status_code == 403
    assert client.post("/feedback/dataset/").status_code == 403
