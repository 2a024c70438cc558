"""S22: a real portal whose inference worker is held up: when the alert fires, when more capacity answers, when all is clear again.

    python -m benchmarks.alerts [--hold 0.7]

A few clients ask all the time. Then the worker is stopped (SIGSTOP) for `--hold` seconds out of every second, as a neighbour on the machine might do
to it, so that no answer takes less; the portal's own alert and autoscaler must notice. Once both have, the worker is left alone.
"""

import argparse
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import httpx
import psutil

from benchmarks._portal import portal_with_model
from tests.stack import Stack

CLIENTS = 4
PAUSE_SECONDS = 0.15  # between two questions of a client
QUIET_SECONDS = 20.0  # of traffic before the slow-down
PATIENCE_SECONDS = 240.0
TARGETS = {"alert fires": 45.0, "more capacity answers": 30.0, "alert is over": 90.0}


class Traffic:
    """Clients that ask different questions until they are told to stop, and what their answers took."""

    def __init__(self, url: str, token: str, version: str):
        self._url, self._token, self._version = url, token, version
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self.took: list[tuple[float, float]] = []  # when, seconds
        self.failed = 0

    @contextmanager
    def running(self) -> Iterator["Traffic"]:
        threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {self._token}"}, timeout=70) as client:
            while not self._stop.wait(PAUSE_SECONDS):
                began = time.time()
                question = {"prompt": f"What is entry {next(self._numbers)}?", "max_tokens": 16, "version": self._version}
                try:
                    self.failed += not client.post("/api/v1/generate/", json=question).is_success
                except httpx.TransportError:
                    self.failed += 1
                self.took.append((time.time(), time.time() - began))

    def p99_ms(self, since: float) -> float:
        found = sorted(seconds for at, seconds in self.took if at >= since)
        return found[min(len(found) - 1, int(len(found) * 0.99))] * 1000 if found else float("nan")


@contextmanager
def held_up(processes: list[psutil.Process], hold: float) -> Iterator[None]:
    """Stopped for `hold` seconds of every second."""
    over = threading.Event()

    def turn() -> None:
        while not over.is_set():
            for act, seconds in ((psutil.Process.suspend, hold), (psutil.Process.resume, 1 - hold)):
                for process in processes:
                    with suppress(psutil.NoSuchProcess):
                        act(process)
                over.wait(seconds)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def until(found: Callable[[], dict | None]) -> dict:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if row := found():
            return row
        time.sleep(0.25)
    raise SystemExit("The portal did not notice in time.")


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def measure(portal: Stack, version: str, hold: float) -> str:
    def alert(state: str) -> dict | None:
        return next(iter(portal.get("/api/v1/alerts/", rule="p99_latency", state=state)["results"]), None)

    def scaled_out() -> dict | None:
        rows = portal.get("/api/v1/scaling-decisions/")["results"]
        return next(
            (row for row in rows if row["replicas"] > row["before"] and row["ready_seconds"] is not None and seconds_of(row["created_at"]) > began),
            None,
        )

    with Traffic(portal.url, portal.token, version).running() as traffic:
        time.sleep(QUIET_SECONDS)
        began = time.time()
        before = traffic.p99_ms(began - QUIET_SECONDS / 2)
        with held_up(portal.processes("inference"), hold):
            fired = until(lambda: alert("firing"))
            scaled = until(scaled_out)
            during = traffic.p99_ms(began + 2)
        recovered = time.time()
        resolved = until(lambda: (row := alert("resolved")) and row["id"] == fired["id"] and row)
        seen = time.time()
    decided = seconds_of(scaled["created_at"]) - began
    rows = {
        "alert fires": (seconds_of(fired["fired_at"]) - began, f"P99 {before:.0f} → {during:.0f} ms, as the clients saw it"),
        "more capacity answers": (decided + scaled["ready_seconds"], f"decided after {decided:.1f} s: {scaled['reason']}"),
        "alert is over": (
            seen - recovered,
            f"of the recovery; its figure fell below {resolved['threshold']:.0f} ms after {seconds_of(resolved['resolved_at']) - recovered:.1f} s",
        ),
    }
    lines = [f"| {name} | {after:.1f} s | ≤ {TARGETS[name]:.0f} s | {how} |" for name, (after, how) in rows.items()]
    note = f"{len(traffic.took)} questions by {CLIENTS} clients, {traffic.failed} of them failed; the worker stood still for {hold:.0%} of each second. Load of the machine before: {os.getloadavg()[0]:.1f}."
    return "\n".join(["| what | after | wanted | |", "|---|---|---|---|", *lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hold", type=float, default=0.7, help="seconds of each second in which the worker stands still")
    given = parser.parse_args()
    with portal_with_model(DSPORTAL_MAX_REPLICAS="2", DSPORTAL_INFERENCE_THREADS="1") as (portal, version):
        print(measure(portal, version, given.hold))


if __name__ == "__main__":
    main()
