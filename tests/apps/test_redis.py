"""A ledger: what is counted and logged together, by one command. Scripts, and what becomes of them where a connection breaks."""

import pytest
import redis

from apps.redis import Ledger, Script, connection


def test_a_ledger_adds_to_counters_and_streams_and_says_how_long_counters_are_kept(clean_redis):
    connection().hset("h", "b", 40)
    ledger = Ledger()
    ledger.add("h", {"a": 1, "b": 2}, kept_seconds=70)
    ledger.append("log", {"row": '{"text": "水"}'.encode()})
    ledger.add("other", {"n": 3}, kept_seconds=5)

    ledger.write()

    assert connection().hgetall("h") == {"a": "1", "b": "42"}
    assert connection().hgetall("other") == {"n": "3"}
    assert 60 < connection().ttl("h") <= 70
    assert [entry for _, entry in connection().xrange("log")] == [{"row": '{"text": "水"}'}]
    assert connection().ttl("log") == -1


def test_an_empty_ledger_asks_redis_nothing(monkeypatch):
    monkeypatch.setattr("apps.redis._done", None)
    ledger = Ledger()
    ledger.add("h", {}, kept_seconds=70)
    ledger.write()


def test_a_ledger_is_written_to_a_redis_that_has_lost_its_scripts(clean_redis):
    for _ in range(2):
        ledger = Ledger()
        ledger.add("h", {"a": 1}, kept_seconds=70)
        ledger.write()
        connection().script_flush()
    assert connection().hgetall("h") == {"a": "2"}


add = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


def test_a_script_is_run_over_a_new_connection_where_redis_closed_the_old_one(clean_redis):
    assert add(["n"], [2]) == 2
    connection().client_kill_filter(_type="normal", skipme=False)
    assert add(["n"], [3]) == 5


def test_a_script_whose_reply_comes_too_late_is_not_run_again(clean_redis, late_reply):
    add(["n"], [1])
    with late_reply(), pytest.raises(redis.TimeoutError):
        add(["n"], [1])
    assert connection().get("n") == "2"


def test_what_a_script_refuses_leaves_its_connection_of_use(clean_redis):
    connection().set("text", "of words")
    with pytest.raises(redis.ResponseError):
        add(["text"], [1])
    assert add(["n"], [1]) == 1
