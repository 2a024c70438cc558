import pytest

from apps.accounts.models import AuditEntry
from apps.jobs import services
from apps.jobs.models import JobEvent
from tests.apps import making

pytestmark = pytest.mark.django_db


@pytest.fixture
def job(operator):
    return making.training_job(making.processed(operator))


@pytest.mark.parametrize("path", ["training-jobs", "jobs"])
def test_a_queued_job_is_cancelled_at_once_and_can_be_resumed(as_operator, job, path):
    url = f"/api/v1/{path}/{job.pk}/"

    assert as_operator.post(f"{url}cancel/").json()["status"] == "cancelled"
    assert as_operator.post(f"{url}cancel/").status_code == 409
    resumed = as_operator.post(f"{url}resume/")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "queued")
    assert as_operator.post(f"{url}resume/").status_code == 409
    assert set(AuditEntry.objects.values_list("action", flat=True)) >= {"training.cancel", "training.resume"}


def test_a_running_job_is_asked_to_stop_and_its_worker_hears_it(as_operator, job):
    running = services.claim_next(worker="w")
    assert services.beat(running)

    assert as_operator.post(f"/api/v1/training-jobs/{job.pk}/cancel/").json()["status"] == "running"

    assert not services.beat(running)


def test_jobs_of_every_kind_are_one_list_that_leads_to_each(as_viewer, job):
    rows = as_viewer.get("/api/v1/jobs/").json()["results"]

    assert [row["kind"] for row in rows] == ["training", "processing"]
    assert rows[0]["url"].endswith(f"/api/v1/training-jobs/{job.pk}/")
    assert as_viewer.get(rows[1]["url"]).json()["dataset"] == job.dataset_id
    assert [row["id"] for row in as_viewer.get("/api/v1/jobs/?kind=training&status=queued").json()["results"]] == [job.pk]


def steps(job, losses):
    return [JobEvent.objects.create(job_id=job.pk, kind="step", data={"loss": loss}) for loss in losses]


def test_events_are_read_from_where_one_left_off(as_viewer, job):
    written = steps(job, [3.0, 2.0, 1.0])
    url = f"/api/v1/training-jobs/{job.pk}/events/"

    first = as_viewer.get(f"{url}?limit=2").json()
    rest = as_viewer.get(f"{url}?after={first['last']}").json()

    assert [e["data"]["loss"] for e in first["results"] + rest["results"]] == [3.0, 2.0, 1.0]
    assert rest["last"] == written[-1].pk
    assert as_viewer.get(f"{url}?after={rest['last']}").json()["results"] == []
    assert as_viewer.get(f"{url}?kind=sample").json()["results"] == []


def test_a_stream_of_events_takes_up_after_the_last_seen_and_ends_with_the_job(as_viewer, job):
    written = steps(job, [3.0, 2.0, 1.0])
    running = services.claim_next(worker="w")
    services.fail(running, "out of memory; take a smaller preset")

    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(written[0].pk)}
    response = as_viewer.get(f"/api/v1/training-jobs/{job.pk}/events/", headers=headers)

    text = b"".join(response.streaming_content).decode()
    assert response["Content-Type"].startswith("text/event-stream")
    assert f"id: {written[0].pk}\n" not in text
    assert f'id: {written[1].pk}\nevent: step\ndata: {{"loss": 2.0}}\n\n' in text
    assert text.rstrip().endswith('event: end\ndata: {"status": "failed"}')
    assert "out of memory" in text


def test_a_failed_job_says_why(as_viewer, job):
    services.fail(services.claim_next(worker="w"), "out of memory; take a smaller preset")

    row = as_viewer.get(f"/api/v1/training-jobs/{job.pk}/").json()

    assert (row["status"], row["error"]) == ("failed", "out of memory; take a smaller preset")
    assert row["finished_at"]
