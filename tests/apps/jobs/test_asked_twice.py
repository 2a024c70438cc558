"""The same work asked for twice, by a double click or by a client whose answer was lost, is one job as long as that is under way."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections

from apps.jobs import services as jobs
from apps.jobs.models import Job
from tests.apps import making
from tests.apps.conftest import Api

pytestmark = pytest.mark.django_db

WORK = ("compression", "training", "evaluation")
each_kind = pytest.mark.parametrize("kind", WORK)


@pytest.fixture
def request_of(operator):
    """The address and the body by which work of a kind is asked for."""
    data = making.processed(operator)
    version = making.version("v1", run=data.current_run)
    return {
        "compression": ("/api/v1/compressions/", {"model_version": version.pk, "method": "prune", "sparsity": 0.5}),
        "training": ("/api/v1/training-jobs/", {"dataset": data.pk, "steps": 10}),
        "evaluation": (f"/api/v1/model-versions/{version.pk}/evaluate/", {}),
    }


def ask(client: Api, address: str, body: dict[str, Any]) -> str:
    response = client.post(address, body)
    assert response.status_code == 202, response.json()
    return response.json()["id"]


@each_kind
def test_the_same_again_is_the_job_that_waits_or_runs_whoever_asks(as_operator, as_admin, request_of, kind):
    address, body = request_of[kind]
    first = ask(as_operator, address, body)

    assert ask(as_admin, address, body) == first
    Job.objects.filter(pk=first).update(status="running")
    assert ask(as_operator, address, body) == first


@pytest.mark.parametrize(("kind", "spelt_out"), [
    ("compression", {"structure": "unstructured", "importance": "magnitude"}), ("training", {"preset": "nano", "seed": 0, "precision": "bf16"}),
    ("evaluation", {"max_questions": 300, "max_tokens": 64}),
])  # fmt: skip
def test_it_is_the_same_where_defaults_are_spelt_out(as_operator, request_of, kind, spelt_out):
    address, body = request_of[kind]

    assert ask(as_operator, address, body | spelt_out) == ask(as_operator, address, body)


@pytest.mark.parametrize(("kind", "other"), [
    ("compression", {"sparsity": 0.6}), ("compression", {"structure": "layer"}), ("training", {"seed": 1}), ("training", {"steps": 11}),
    ("evaluation", {"max_questions": 20}),
])  # fmt: skip
def test_anything_else_is_a_job_of_its_own(as_operator, request_of, kind, other):
    address, body = request_of[kind]

    assert ask(as_operator, address, body | other) != ask(as_operator, address, body)


@each_kind
@pytest.mark.parametrize("state", [{"status": "succeeded"}, {"status": "failed"}, {"status": "cancelled"}, {"cancel_requested": True}])
def test_what_has_ended_or_is_about_to_can_be_asked_for_again(as_operator, request_of, kind, state):
    address, body = request_of[kind]
    first = ask(as_operator, address, body)
    Job.objects.filter(pk=first).update(**state)

    assert ask(as_operator, address, body) != first


def ended(client: Api, address: str, body: dict[str, Any], state: str) -> str:
    pk = ask(client, address, body)
    Job.objects.filter(pk=pk).update(status=state)
    return pk


@each_kind
@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_ended_is_not_resumed_beside_the_same_that_is_under_way(as_operator, request_of, kind, state):
    first = ended(as_operator, *request_of[kind], state)
    second = ask(as_operator, *request_of[kind])

    refused = as_operator.post(f"/api/v1/jobs/{first}/resume/")

    assert refused.status_code == 409
    assert refused.json()["job"] == second
    assert second in refused.json()["detail"]
    assert Job.objects.get(pk=first).status == state
    Job.objects.filter(pk=second).update(status="succeeded")
    assert as_operator.post(f"/api/v1/jobs/{first}/resume/").status_code == 202


@each_kind
def test_what_ended_is_resumed_beside_work_of_another_kind(as_operator, request_of, kind):
    first = ended(as_operator, *request_of[kind], "failed")
    for other in set(WORK) - {kind}:
        ask(as_operator, *request_of[other])

    assert as_operator.post(f"/api/v1/jobs/{first}/resume/").status_code == 202


def test_a_page_says_which_job_does_the_same(client, as_operator, operator, request_of):
    first = ended(as_operator, *request_of["compression"], "failed")
    second = ask(as_operator, *request_of["compression"])
    client.force_login(operator)

    page = client.post(f"/jobs/{first}/resume/", {"next": f"/compression/{first}/"}, follow=True)

    assert f"The same is under way already: pruning of v1 (job {second})." in page.content.decode()


def test_a_dataset_s_processing_is_not_resumed_beside_another(as_operator, operator):
    data = making.dataset(operator)
    first = ended(as_operator, f"/api/v1/datasets/{data.pk}/process/", {}, "failed")
    second = ask(as_operator, f"/api/v1/datasets/{data.pk}/process/", {"seed": 1})

    refused = as_operator.post(f"/api/v1/processing-runs/{first}/resume/")

    assert (refused.status_code, refused.json()["job"]) == (409, second)


def at_once(clients: list[Api], *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """What each is answered: to its own request, or all to the same."""
    together = threading.Barrier(len(clients))

    def one(client: Api, request: tuple[str, dict[str, Any]]) -> Any:
        try:
            together.wait(10)
            return client.post(*request)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(one, clients, requests * (len(clients) // len(requests))))


@pytest.fixture
def slow_to_commit(monkeypatch):
    """A job's row is there, and not yet to be seen by others: the time in which PostgreSQL would let a second one be made."""
    monkeypatch.setattr(jobs, "nudge", lambda: time.sleep(0.3))


@pytest.mark.django_db(transaction=True)
@each_kind
def test_of_two_who_ask_at_once_both_are_given_the_one_job(operator, request_of, slow_to_commit, kind):
    found = at_once([Api(operator), Api(operator)], request_of[kind])

    assert [response.status_code for response in found] == [202, 202]
    assert [response.json()["id"] for response in found] == [Job.objects.get(kind=kind).pk] * 2


@pytest.mark.django_db(transaction=True)
@each_kind
def test_of_two_equal_ones_that_are_resumed_at_once_one_goes_on(as_operator, operator, request_of, slow_to_commit, kind):
    first, second = (ended(as_operator, *request_of[kind], "failed") for _ in range(2))

    found = at_once([Api(operator), Api(operator)], (f"/api/v1/jobs/{first}/resume/", {}), (f"/api/v1/jobs/{second}/resume/", {}))

    assert sorted(response.status_code for response in found) == [202, 409]
    assert Job.objects.filter(kind=kind, status="queued").count() == 1


@pytest.fixture
def folder_to_import(settings, tmp_path) -> str:
    settings.IMPORT_ROOTS = [tmp_path]
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text("{}")
    return "gpt"


@pytest.mark.django_db(transaction=True)
def test_of_two_who_import_under_one_name_at_once_one_is_refused(operator, slow_to_commit, folder_to_import):
    found = at_once([Api(operator), Api(operator)], ("/api/v1/model-versions/", {"name": "same", "path": folder_to_import}))

    assert sorted(response.status_code for response in found) == [202, 409]
    assert Job.objects.filter(kind="import").count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_name_is_not_given_while_another_import_takes_it(operator, slow_to_commit, folder_to_import, settings):
    settings.UPSTREAM_HOSTS = ["gpu"]
    upstream = {"name": "same", "base_url": "http://gpu/v1", "model": "words", "check": False}

    found = at_once(
        [Api(operator), Api(operator)],
        ("/api/v1/model-versions/", {"name": "same", "path": folder_to_import}), ("/api/v1/upstreams/", upstream),
    )  # fmt: skip

    assert sorted(response.status_code for response in found) in ([201, 409], [202, 409])


def test_an_import_whose_name_was_taken_meanwhile_is_not_resumed(as_operator, folder_to_import):
    asked = ("/api/v1/model-versions/", {"name": "same", "path": folder_to_import})
    first = ended(as_operator, *asked, "failed")
    second = ask(as_operator, *asked)

    assert as_operator.post(f"/api/v1/imports/{first}/resume/").status_code == 409
    Job.objects.filter(pk=second).update(status="cancelled")
    assert as_operator.post(f"/api/v1/imports/{first}/resume/").status_code == 202


@pytest.mark.django_db(transaction=True)
def test_of_two_who_process_a_dataset_at_once_one_is_told_that_it_is_under_way(operator, slow_to_commit):
    data = making.dataset(operator)

    found = at_once([Api(operator), Api(operator)], (f"/api/v1/datasets/{data.pk}/process/", {}))

    assert sorted(response.status_code for response in found) == [202, 409]
    assert Job.objects.filter(kind="processing").count() == 1
