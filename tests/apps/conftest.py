"""People of the three roles with clients, rows as the services make them, and an inference worker of one phrase."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest
import redis
from celery.contrib.testing.worker import start_worker
from django.test import Client

from apps.accounts import quotas
from apps.accounts.models import User
from apps.accounts.selectors import _token_cache
from apps.accounts.services import create_token
from apps.monitoring.presence import be_present
from apps.monitoring.tally import tally
from apps.monitoring.traces import telling
from apps.redis import connection
from apps.registry.models import ModelVersion
from apps.serving.cache import near
from tests.apps import making
from tests.apps.answering import engine_that_echoes


class Api(Client):
    """A service with a token (or none) that speaks JSON."""

    def __init__(self, user: User | None = None):
        super().__init__()
        self.user = user
        if user:
            _row, token = create_token(user=user, name="tests", actor=user)
            self.defaults["HTTP_AUTHORIZATION"] = f"Bearer {token}"

    def post(self, path, data=None, content_type="application/json", **extra):
        return super().post(path, {} if data is None else data, content_type=content_type, **extra)

    def patch(self, path, data=None, content_type="application/json", **extra):
        return super().patch(path, {} if data is None else data, content_type=content_type, **extra)

    def upload(self, path, data):
        """As a browser's form sends it."""
        return Client.post(self, path, data)

    def stream(self, response) -> list[dict | str]:
        """The data of an event stream's events."""
        text = b"".join(response.streaming_content).decode()
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture(autouse=True)
def clean_redis(redis_server):
    tally.write()  # what an earlier test left, and not in the middle of this one
    telling.flush()
    connection().flushall()
    _token_cache.clear()
    near.get("", None)  # in no epoch: what it kept in another is forgotten


@pytest.fixture
def late_reply(monkeypatch) -> Callable[[], AbstractContextManager[None]]:
    """Within it, the first reply of Redis that this thread reads comes too late. The tests' worker reads too, in threads of its own."""

    @contextmanager
    def late() -> Iterator[None]:
        read, here, came = redis.Connection.read_response, threading.get_ident(), []

        def once_late(self, *how, **also):
            found = read(self, *how, **also)
            if not came and threading.get_ident() == here:
                came.append(found)
                raise redis.TimeoutError
            return found

        with monkeypatch.context() as patched:
            patched.setattr(redis.Connection, "read_response", once_late)
            yield

    return late


@pytest.fixture
def within_a_minute(monkeypatch) -> None:
    """For quotas it is the middle of a minute all the time: once the next one begins, the window covers a little less of what was used in this."""
    monkeypatch.setattr(quotas, "Quota", partial(quotas.Quota, clock=lambda: 30.0))


@pytest.fixture
def person(db) -> Callable[..., User]:
    def make(role: str, name: str | None = None) -> User:
        return User.objects.create_user(name or role, password="a-password-for-tests", role=role)

    return make


@pytest.fixture
def admin(person) -> User:
    return person("admin")


@pytest.fixture
def operator(person) -> User:
    return person("operator")


@pytest.fixture
def viewer(person) -> User:
    return person("viewer")


@pytest.fixture
def as_admin(admin) -> Api:
    return Api(admin)


@pytest.fixture
def as_operator(operator) -> Api:
    return Api(operator)


@pytest.fixture
def as_viewer(viewer) -> Api:
    return Api(viewer)


@pytest.fixture
def anonymous(db) -> Api:
    return Api()


@pytest.fixture(scope="session")
def _inference(redis_server) -> Iterator[None]:
    """A real Celery worker in a thread of this process, on the queue of answers. It is not named `inference`, so that it follows no
    live version by itself: the tests say which versions it holds."""
    from dsportal.celery import app
    from workers.tasks import answers  # noqa: F401 — registers the task

    with start_worker(app, pool="threads", concurrency=4, queues=["inference"], hostname="answers@tests", perform_ping_check=False, loglevel="error"):
        yield


@pytest.fixture
def answers_with(_inference) -> Iterator[Callable[[ModelVersion], None]]:
    """Say which version the worker answers for: `You asked: …`, from the real engine, without a model's weights.

    At the end the worker is done with what it was asked: an answer is read before it has told the charts of it, and the next test is not to hear of that.
    """
    from workers.tasks.answers import cancellations, engines

    be_present("inference", "tests", seconds=60)
    opened = []

    def hold(version: ModelVersion) -> None:
        engines.hold(version.pk, engine_that_echoes())
        opened.append(version.pk)

    yield hold
    ends = time.monotonic() + 30
    while cancellations._heard:
        assert time.monotonic() < ends, "the worker is still at what this test asked"
        time.sleep(0.002)
    for pk in opened:
        engines.let_go(pk)


@pytest.fixture
def live(db, answers_with) -> ModelVersion:
    """The version that answers."""
    version = making.version("v1", state="live")
    answers_with(version)
    return version
