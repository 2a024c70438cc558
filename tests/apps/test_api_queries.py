"""A list of many rows asks the database as often as a list of one."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.accounts import selectors
from apps.accounts.services import create_token
from apps.experiments import services as experiments
from apps.feedback.models import Feedback
from apps.monitoring.models import Alert
from apps.registry import services as registry
from apps.registry.imports import import_model
from apps.serving.models import Conversation, Deployment
from tests.apps import making

pytestmark = pytest.mark.django_db

LISTS = [
    "datasets", "processing-runs", "training-jobs", "jobs", "model-versions", "evaluations", "evaluation-sets", "compressions", "imports", "deployments",
    "experiments", "feedback", "answers", "conversations", "alerts", "audit", "tokens", "users",
]  # fmt: skip


@pytest.fixture
def grow(person, admin):
    def add(n: int) -> None:
        actor = person("operator", f"person{n}")
        data = making.processed(actor, f"d{n}")
        job = making.training_job(data, created_by=actor)
        parent = making.version(f"p{n}", run=data.current_run)
        version = making.version(f"v{n}", run=data.current_run, parent=parent)
        version.training_job = job
        version.created_by = actor
        version.save()
        making.evaluated(version, data.current_run.evaluation_sets.get())
        registry.compress(version=version, method="int8", options={}, actor=actor)
        Deployment.objects.create(model_version=version, reason="promotion", created_by=actor)
        experiments.create(control=parent, treatment=version, actor=actor)
        conversation = Conversation.objects.create(user=admin, title=f"c{n}")
        Feedback.objects.create(answer=making.answer(version, admin, conversation=conversation), rating=3, user=admin)
        Alert.objects.create(rule="p99_latency", value=1, threshold=1, message="slow", acknowledged_by=actor)
        create_token(user=admin, name=f"t{n}", actor=admin)

    return add


@pytest.fixture(autouse=True)
def tokens_stay_known(monkeypatch):
    """A token is asked for anew after a second: on a busy machine in the midst of what is counted here."""
    monkeypatch.setattr(selectors, "TOKEN_CACHE_SECONDS", 3600)


def queries(client, path: str) -> tuple[int, int]:
    with CaptureQueriesContext(connection) as captured:
        rows = client.get(f"/api/v1/{path}/").json()["results"]
    return len(captured), len(rows)


def test_no_list_asks_once_more_for_each_row(as_admin, grow, settings, tmp_path):
    settings.IMPORT_ROOTS = [tmp_path]
    (tmp_path / "config.json").write_text("{}")
    grow(0)
    import_model(name="i0", path=str(tmp_path), actor=as_admin.user)
    as_admin.get("/api/v1/me/")
    few = {path: queries(as_admin, path) for path in LISTS}
    for n in range(1, 5):
        grow(n)
        import_model(name=f"i{n}", path=str(tmp_path), actor=as_admin.user)

    for path in LISTS:
        count, rows = queries(as_admin, path)
        assert rows >= few[path][1] + 4, path
        assert count <= few[path][0], f"{path}: {few[path][0]} queries for {few[path][1]} rows, {count} for {rows}"
        assert count <= 5, path


def test_a_versions_detail_asks_a_bounded_number_of_times(as_admin, grow):
    for n in range(4):
        grow(n)
    version = as_admin.get("/api/v1/model-versions/").json()["results"][0]

    with CaptureQueriesContext(connection) as captured:
        as_admin.get(version["url"])

    assert len(captured) <= 8
