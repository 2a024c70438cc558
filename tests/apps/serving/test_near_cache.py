"""What a web process remembers by itself: routes and cached answers, for as long as what serves is the same."""

import time
from types import SimpleNamespace

import pytest
import redis

from apps.experiments import services as experiments
from apps.redis import connection
from apps.serving import cache, epoch, near_cache, routing
from apps.serving.near_cache import NearCache
from tests.apps import making

pytestmark = pytest.mark.django_db


def test_the_longest_unused_goes_where_there_are_too_many_bytes():
    near = NearCache(8000)
    for key in "abcdefgh":
        near.put(key, "x" * 249, "one")  # 997 bytes with its key
    assert near.get("a", "one")
    near.put("i", "x" * 249, "one")
    assert [key for key in "abcdefghi" if near.get(key, "one")] == list("acdefghi")
    assert near.bytes == 8 * 997
    near.put("huge", "x" * 1500, "one")
    assert near.get("huge", "one") is None


def test_nothing_is_left_when_the_epoch_changes_or_is_not_known():
    near = NearCache(8000)
    for another in ("two", None):
        near.put("a", "text", "one")
        assert near.get("a", "one") == "text"
        assert near.get("a", another) is None
        assert (near.get("a", "one"), near.bytes) == (None, 0)


def test_an_entry_is_asked_for_again_in_redis_after_a_while(monkeypatch):
    near = NearCache(8000)
    near.put("a", "text", "one")
    monkeypatch.setattr(near_cache, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + near_cache.REFRESH_SECONDS))
    assert near.get("a", "one") is None


def test_an_answer_is_found_without_redis_until_another_version_is_promoted(monkeypatch):
    now = epoch.current()
    cache.put("key", {"text": "of v1"}, now)
    connection().delete(*cache._KEYS)
    assert cache.get("key", now) == {"text": "of v1"}

    cache.clear_answers()
    assert epoch.current() != now
    assert cache.get("key", epoch.current()) is None


def test_routes_are_read_anew_with_every_change(operator, django_capture_on_commit_callbacks):
    live, other = making.version("v1", state="live"), making.version("v2")
    assert routing.route(asked=None, subject="s").version == live
    with django_capture_on_commit_callbacks(execute=True):
        experiment = experiments.start(experiment=experiments.create(control=live, treatment=other, actor=operator), actor=operator)
    assert {routing.route(asked=None, subject=str(n)).version for n in range(20)} == {live, other}
    with django_capture_on_commit_callbacks(execute=True):
        experiments.stop(experiment=experiment, actor=operator)
    assert {routing.route(asked=None, subject=str(n)).version for n in range(20)} == {live}


def test_routes_are_remembered_only_where_redis_says_that_nothing_changed(django_assert_num_queries, monkeypatch, settings):
    settings.ROUTES_KEPT_SECONDS = 3600.0  # not two: on a busy machine the next line may come after that
    making.version("v1", state="live")
    routing.route(asked=None, subject="s")
    with django_assert_num_queries(0):
        routing.route(asked=None, subject="s")

    def gone():
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(epoch, "connection", gone)
    with django_assert_num_queries(2):
        routing.route(asked=None, subject="s")
