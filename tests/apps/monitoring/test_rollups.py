"""Seconds become minutes, minutes hours; nothing is counted twice, whatever is done again or dies."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
import redis
from prometheus_client import CollectorRegistry, multiprocess

from apps.monitoring import buckets, names, rollups
from apps.monitoring.histogram import bin_of
from apps.monitoring.models import MetricHour, MetricMinute
from apps.monitoring.presence import be_present
from apps.monitoring.selectors import timeseries
from apps.redis import connection, counting

pytestmark = pytest.mark.django_db

DAY = 86_400
START = 1_800_000_000 // DAY * DAY  # midnight


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    at = [float(START)]
    monkeypatch.setattr(time, "time", lambda: at[0])
    return at


def answers(at: float, number: int, latency_ms: float = 100.0) -> None:
    buckets.count(
        "v",
        {"n": number, str(bin_of(latency_ms)): number, f"f{bin_of(20)}": number, "t": 10 * number, "s": 5 * number, "ddecode": 90_000 * number},
        at=at,
    )


def test_hours_hold_what_their_seconds_held_however_often_they_are_rolled_up(clock):
    be_present("inference", "one", memory_bytes=300)
    asked: Counter[int] = Counter()
    for second in range(0, 2 * 3600, 25):
        clock[0] = START + second
        answers(clock[0], 1 + second % 3)
        asked[second // 3600] += 1 + second % 3
        if second % 4 == 0:
            be_present("inference", "one", memory_bytes=300)
            rollups.roll_up()
    rollups.roll_up()
    clock[0] += 60
    rollups.roll_up()
    rollups.roll_up()

    for version in ("", "v"):
        rows = list(MetricHour.objects.filter(version=version, requests__gt=0).order_by("hour"))
        assert [row.requests for row in rows] == [asked[0], asked[1]]
        assert [row.written_tokens for row in rows] == [10 * asked[0], 10 * asked[1]]
        assert [row.phases for row in rows] == [{"decode": 90_000 * asked[0]}, {"decode": 90_000 * asked[1]}]
        assert sum(rows[0].latency.values()) == sum(rows[0].first_token.values()) == asked[0]
    assert MetricHour.objects.filter(version="").first().memory_bytes == 300
    points = timeseries(window=365 * DAY, step=DAY, now=clock[0])
    assert sum(point["requests"] for point in points) == sum(asked.values())
    assert points[-1]["p95_ms"] == pytest.approx(100, rel=0.02)
    assert points[-1]["batch_size"] == 2
    assert (points[-1]["phase_decode_ms"], points[-1]["phase_queue_ms"]) == (90, 0)


def test_the_memory_of_processes_that_have_not_spoken_yet_is_not_nothing(clock):
    be_present("inference", "one", memory_bytes=300)
    rollups.roll_up()
    connection().delete(names.PRESENT.format(role="inference"))  # Redis came back without it
    clock[0] += 2
    rollups.roll_up()
    points = timeseries(window=10, step=1, now=clock[0])
    assert [point["memory_bytes"] for point in points[-3:]] == [300, 300, 300]
    assert points[-1]["replicas"] == 0


def test_minutes_that_nobody_rolled_up_are_made_good(clock):
    rollups.roll_up()
    for minute in range(10):  # beat is away, the web process counts
        answers(START + 60 * minute, 3)
    clock[0] = START + 620

    rollups.roll_up()

    assert list(MetricMinute.objects.filter(version="v").order_by("minute").values_list("requests", flat=True)) == [3] * 10


def test_a_redis_that_was_wiped_takes_nothing_away(clock):
    answers(START + 1, 5)
    clock[0] = START + 30
    rollups.roll_up()
    connection().flushall()
    answers(START + 31, 2)

    rollups.roll_up()

    assert MetricMinute.objects.get(version="v").requests == 5


def test_a_count_whose_reply_comes_too_late_is_not_added_again(late_reply):
    counting().ping()

    with late_reply(), pytest.raises(redis.TimeoutError):
        answers(START, 1)

    assert buckets.read_by_version(START, START)["v"].requests == 1


def test_what_was_refused_is_kept_in_minutes_and_hours_as_no_request(clock):
    answers(START, 2)
    buckets.count("", {"b": 7}, at=START)
    buckets.count("v", {"b": 1}, at=START)
    clock[0] = START + 61

    rollups.roll_up()

    assert list(MetricMinute.objects.filter(minute=datetime.fromtimestamp(START, UTC)).order_by("version").values_list("version", "requests", "refused")) == [
        ("", 2, 8), ("v", 2, 1),
    ]  # fmt: skip
    assert MetricHour.objects.get(version="").refused == 8


SCRIPT = """
import sys
from apps.monitoring.recorder import observe
from apps.monitoring.tally import tally
for line in sys.stdin:
    for _ in range(int(line)):
        observe(version="v", route="generate", tenant="token", latency_ms=10, completion_tokens=2)
    tally.write()
    print("done", flush=True)
"""


def counted(folder: str) -> tuple[float, float]:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=folder)
    labels = {"version": "v", "route": "generate", "tenant": "token"}
    requests = registry.get_sample_value(names.REQUESTS_TOTAL, {**labels, "outcome": "ok"})
    return requests, registry.get_sample_value(f"{names.REQUEST_SECONDS}_count", labels)


def test_what_killed_processes_counted_stays_counted_once(tmp_path, redis_server):
    """SIGKILL in the middle: /metrics of the others goes on from where it was, and a new process adds to it."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "dsportal.settings"}
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]  # fmt: skip

    def work(process: subprocess.Popen, number: int) -> None:
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    seen = []
    for process, number in zip(processes, (40, 25, 35), strict=True):
        work(process, number)
        seen.append(counted(str(tmp_path)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        multiprocess.mark_process_dead(process.pid, str(tmp_path))  # as the supervisor does
        seen.append(counted(str(tmp_path)))

    assert seen == [(40, 40)] * 2 + [(65, 65)] * 2 + [(100, 100)] * 2
    now = int(time.time())
    assert buckets.read_by_version(now - 600, now)["v"].requests == 100
