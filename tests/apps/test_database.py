"""On PostgreSQL a process has a few connections for all of its threads: one that waits for something else holds none."""

import threading

import pytest
from django.conf import settings
from django.db import connection

from apps.jobs import api, services
from apps.serving import flight
from tests.apps import making

pytestmark = [
    pytest.mark.django_db(transaction=True),  # in the middle of a transaction a connection must be kept
    pytest.mark.skipif(
        "pool" not in settings.DATABASES["default"]["OPTIONS"], reason="SQLite: a connection is a file, and each thread may keep its own"
    ),
]


def is_held() -> bool:
    return connection.connection is not None


@pytest.fixture
def held(monkeypatch) -> list[bool]:
    """Whether this thread held a connection, each time that it was about to wait for an answer or a job."""
    seen: list[bool] = []
    here = threading.get_ident()

    def note(module, name: str) -> None:
        wait = getattr(module, name)

        def noting(*how, **also):
            if threading.get_ident() == here:
                seen.append(is_held())
            return wait(*how, **also)

        monkeypatch.setattr(module, name, noting)

    note(flight, "enter")
    note(api.time, "sleep")
    return seen


def test_a_question_that_waits_for_its_answer(as_viewer, live, held):
    assert as_viewer.post("/api/v1/generate/", {"prompt": "What is water?"}).status_code == 200

    assert held == [False]


def test_a_page_that_follows_a_job(as_viewer, operator, held):
    job = making.training_job(making.processed(operator))
    pieces = iter(as_viewer.get(f"/api/v1/training-jobs/{job.pk}/events/", headers={"Accept": "text/event-stream"}).streaming_content)
    next(pieces)

    services.cancel(job=job, actor=operator)

    assert b"cancelled" in b"".join(pieces)
    assert held
    assert not any(held)


def test_a_file_that_somebody_reads_slowly(as_viewer, live):
    weights = as_viewer.get(f"/api/v1/model-versions/{live.pk}/files/").json()["results"][0]
    response = as_viewer.get(weights["url"])

    assert response.streaming
    assert not is_held()
