"""Processes come and go by the dozen; what they counted stays counted once, in as many files as live processes and the dead together need."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, multiprocess

from dsportal.metrics_folder import bury_dead, held_still

ROUNDS = 12
SCRIPT = """
import sys
from prometheus_client import Counter, Gauge, Histogram
asked = Counter("asked_total", "", ["who"])
took = Histogram("took_seconds", "", buckets=(1, 2))
here = Gauge("here", "", multiprocess_mode="livesum")
newest = Gauge("newest", "", multiprocess_mode="mostrecent")
here.set(1)
for line in sys.stdin:
    number = int(line)
    newest.set(number)
    for _ in range(number):
        asked.labels("a").inc()
        asked.labels("b").inc(2)
        took.observe(0.5)
        took.observe(1.5)
    print("done", flush=True)
"""


@contextmanager
def process(folder: Path, number: int) -> Iterator[subprocess.Popen]:
    """One that has counted so often, and lives; killed at the end."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    started = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        started.stdin.write(f"{number}\n")
        started.stdin.flush()
        assert started.stdout.readline() == "done\n"
        yield started
    finally:
        started.send_signal(signal.SIGKILL)
        started.communicate()


def read(folder: Path) -> dict[str, float | None]:
    registry = CollectorRegistry()
    with held_still(folder):
        multiprocess.MultiProcessCollector(registry, path=str(folder))
        samples = {(sample.name, *sample.labels.values()): sample.value for metric in registry.collect() for sample in metric.samples}
    return {
        "a": samples.get(("asked_total", "a")), "b": samples.get(("asked_total", "b")), "took": samples.get(("took_seconds_count",)),
        "below_1": samples.get(("took_seconds_bucket", "1.0")), "sum": samples.get(("took_seconds_sum",)), "here": samples.get(("here",)),
        "newest": samples.get(("newest",)),
    }  # fmt: skip


def expected(total: int, *, here: float | None, newest: int) -> dict[str, float | None]:
    return {"a": total, "b": 2 * total, "took": 2 * total, "below_1": total, "sum": 2.0 * total, "here": here, "newest": newest}


def test_counts_of_the_dead_stay_and_their_files_go(tmp_path):
    total = 0
    for number in range(1, ROUNDS + 1):
        with process(tmp_path, number):
            total += number
            bury_dead(tmp_path)  # it lives: nothing of it is touched
            assert read(tmp_path) == expected(total, here=1, newest=number)
            assert len(list(tmp_path.glob("*.db"))) <= 4 + 3  # its own, and the dead's; they have no live gauge
        bury_dead(tmp_path)
        bury_dead(tmp_path)
        assert read(tmp_path) == expected(total, here=None, newest=number)
        assert {path.name for path in tmp_path.glob("*.db")} == {"counter_dead.db", "histogram_dead.db", "gauge_mostrecent_dead.db"}


def test_who_has_the_number_of_a_dead_process_does_not_keep_its_counts_alive(tmp_path):
    with process(tmp_path, 3) as gone:
        pass
    for path in list(tmp_path.glob("*.db")):
        path.rename(path.with_name(path.name.replace(str(gone.pid), str(os.getpid()))))  # as if this process had its number now

    bury_dead(tmp_path)

    assert read(tmp_path) == expected(3, here=None, newest=3)
    assert {path.name for path in tmp_path.glob("*.db")} == {"counter_dead.db", "histogram_dead.db", "gauge_mostrecent_dead.db"}


def test_who_reads_while_the_dead_are_buried_never_sees_more_or_less(tmp_path):
    """Counters must not fall, nor leap: for Prometheus a fall is a restart."""
    wrong, stop, begun = [], threading.Event(), threading.Event()

    def keep_reading(total: int) -> None:
        while not stop.is_set():
            try:
                if (found := read(tmp_path))["a"] != total:
                    wrong.append(found)
            except OSError as error:
                wrong.append(error)
            begun.set()

    total = 0
    for number in (3, 4, 5):
        with process(tmp_path, number), process(tmp_path, number):
            total += 2 * number
        stop.clear()
        begun.clear()
        readers = [threading.Thread(target=keep_reading, args=(total,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        begun.wait(30)
        bury_dead(tmp_path)
        stop.set()
        for reader in readers:
            reader.join()
    assert read(tmp_path)["a"] == total
    assert not wrong


@pytest.mark.parametrize("left", [b"", b"\0" * 65536], ids=["empty", "begun"])
def test_a_process_that_died_before_it_counted_hinders_nobody(tmp_path, left):
    with process(tmp_path, 2) as gone:
        pass
    (tmp_path / f"counter_{gone.pid}0000000.db").write_bytes(left)  # beyond any process's number
    bury_dead(tmp_path)
    assert read(tmp_path)["a"] == 2
    assert (tmp_path / "counter_dead.db").exists()
    assert len(list(tmp_path.glob("counter_*.db"))) == 1
