"""A ledger: what is counted and logged together, by one command."""

from apps.redis import Ledger, connection


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
    monkeypatch.setattr("apps.redis._write", None)
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
