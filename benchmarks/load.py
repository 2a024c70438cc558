"""What a portal does under load, each row against its target: a replay by Zipf's law, twice what it can, its charts beside the generator's own figures,
promotions in between.

    python -m benchmarks.load [replay overload charts swaps] [--minutes 10] [--home TRAINED]      (`charts` alone: five minutes with a `--home`)

A real portal with all its processes and a trained model answers (`tests.stack.teach`; `--home`: a copy of a home where that was done). Locust asks, in an
open loop: questions arrive whether earlier ones are answered or not, and a latency counts from when its question was due. What the portal can is
measured first, by a ramp of the same questions. The generator has no core of its own: it shares the portal's.

The charts are compared under two loads: one that the answer cache takes most of, so that an answer is about as quick as what the web server does around it,
and one where every answer is computed, by a larger model (random: speed does not depend on what the weights say), as is usual for a language model.
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from benchmarks._generator import Asked, Load, percentile_ms
from benchmarks.serving import random_model
from tests.stack import Stack, teach

QUICK = bool(os.environ.get("BENCH_QUICK"))
QUESTIONS = 10_000  # of the replay
SHARE = 0.7  # of the capacity, of the replay
P99_MS = 500.0
RAMP_FIRST, RAMP_GROWTH, RAMP_SECONDS, RAMP_STAGES = (40.0, 1.5, 1.5, 8) if QUICK else (40.0, 1.25, 4.0, 12)
OVERLOAD_SECONDS, CALM_SECONDS = (5.0, 5.0) if QUICK else (120.0, 15.0)
CALM_SHARE = 0.5
LATE_SECONDS = 10.0  # an answer that takes longer counts as one of a pile of late ones
RECOVERY_SECONDS = 5.0
CHART_SECONDS, CHART_STEP = (14.0, 5) if QUICK else (60.0, 10)
COMPUTING, COMPUTED_TOKENS = ("nano", 16) if QUICK else ("small", 64)  # what computes, and tokens of each answer
COMPUTED_SHARE = 0.6  # of what it can
COMPUTED_RAMP = {"first_rate": 10.0, "growth": 1.5}
FAILING = 0.05  # of the questions of the charts' row, so that there is an error rate: they go to an upstream that only fails
AGREE = 0.02
SWAPS, SWAP_SECONDS = (1, 2.0) if QUICK else (3, 4.0)
CALM_DOWN_SECONDS = 1.0 if QUICK else 3.0  # between two rows
FRESH = 1_000_000  # numbers of questions that no earlier row has asked, a row's so far from the next one's

Row = tuple[str, str, str]  # what, measured, wanted


class Measuring:
    def __init__(self, portal: Stack, replay_seconds: float, failing_port: int):
        self._portal, self._load, self._replay_seconds, self._failing_port = portal, Load(portal), replay_seconds, failing_port
        self._fresh = FRESH
        self._capacity: float | None = None

    def replay(self) -> list[Row]:
        zipf = {"distinct": QUESTIONS, "first": self._first()}
        capacity = self._ramp(**zipf)
        before, processes = self._memory()
        asked = self._load.press([(SHARE * capacity, self._replay_seconds)], **zipf, seed=1)
        after, processes_after = self._memory()
        hits = sum(one.cached for one in asked) / len(asked)
        failed, refused = sum(one.is_failed for one in asked), sum(one.status == 429 for one in asked)
        what = f"{len(asked):,} of {QUESTIONS:,} questions by Zipf's law, {SHARE:.0%} of {capacity:.0f}/s for {self._replay_seconds / 60:.1f} min"
        return [
            (f"{what}: from the cache", f"{hits:.0%}", "≥ 40%"),
            ("P50, P99", f"{percentile_ms(asked, 0.5):.0f} ms, {percentile_ms(asked, 0.99):.0f} ms", f"P99 < {P99_MS:.0f} ms"),
            ("failed; refused", f"{failed}; {refused}", "0; 0"),
            (
                f"memory (PSS) of {processes} processes before, of {processes_after} after",
                f"{before / 2**20:.0f} → {after / 2**20:.0f} MB ({after / before - 1:+.1%})",
                "flat",
            ),
        ]

    def overload(self) -> list[Row]:
        capacity = self._uncached()
        asked = self._load.press([(2 * capacity, OVERLOAD_SECONDS), (CALM_SHARE * capacity, CALM_SECONDS)], first=self._first())
        ends = asked[0].due + OVERLOAD_SECONDS
        during = [one for one in asked if one.due < ends]
        refused = [one for one in during if one.status == 429]
        goodput = sum(one.is_answered and one.ended < ends for one in asked) / OVERLOAD_SECONDS
        failed, late = sum(one.is_failed for one in asked), sum(one.ended - one.due > LATE_SECONDS for one in asked)
        waits = sorted({one.retry_after for one in refused if one.retry_after})
        silent = sum(not one.retry_after for one in refused)
        told = f"{waits[0]} to {waits[-1]} s" if waits else "never"
        return [
            (f"{2 * capacity:.0f} questions/s, twice what it can, for {OVERLOAD_SECONDS:.0f} s: answered/s", f"{goodput:.0f}, {goodput / capacity:.2f} of {capacity:.0f}", "≥ 0.90"),
            ("P50, P99 of those answered", f"{percentile_ms(during, 0.5):.0f} ms, {percentile_ms(during, 0.99):.0f} ms", ""),
            ("told to come back (429); without saying when", f"{len(refused):,} of {len(during):,}; {silent}", "the rest; 0"),
            ("Retry-After, and the time of the slowest answer", f"{told}, {max((one.ms for one in during if one.is_answered), default=0) / 1000:.1f} s", "about the same"),
            (f"failed; later than {LATE_SECONDS:.0f} s", f"{failed}; {late}", "0; 0"),
            (f"all answered, P99 < {P99_MS:.0f} ms, from so long after its end on", f"{_recovery(asked, ends):.0f} s", f"≤ {RECOVERY_SECONDS:.0f} s"),
        ]  # fmt: skip

    def charts(self) -> list[Row]:
        rate = CALM_SHARE * self._uncached()
        cached = [*self._compared("cached", rate, distinct=QUESTIONS), *self._failures(rate)]
        asked = {"version": self._computing(), "max_tokens": COMPUTED_TOKENS}
        rate = COMPUTED_SHARE * self._ramp(**COMPUTED_RAMP, first=self._first(), **asked)
        return cached + self._compared(f"computed, {COMPUTED_TOKENS} tokens each", rate, **asked)

    def _compared(self, load: str, rate: float, **how) -> list[Row]:
        """The portal's charts beside Locust's figures. `load`: its name."""
        asked, seen = self._charted(rate, **how)
        counted, sent = sum(p["requests"] for p, _ in seen), sum(map(len, (mine for _, mine in seen)))
        charted = sum(p["p99_ms"] for p, _ in seen) / len(seen)
        waited = sum(_p99([_as_sent_ms(one) for one in mine]) for _, mine in seen) / len(seen)
        told = sum(_p99([one.latency_ms or _as_sent_ms(one) for one in mine]) for _, mine in seen) / len(seen)
        outside = [_as_sent_ms(one) - one.latency_ms for _, mine in seen for one in mine if one.latency_ms]
        late = [(one.sent - one.due) * 1000 for _, mine in seen for one in mine]
        seconds, refused = len(seen) * CHART_STEP, sum(one.status == 429 for one in asked)
        hits, answered = sum(one.cached for one in asked), sum(one.is_answered for one in asked)
        about = f"{hits / answered:.0%} from the cache, {refused} refused"
        return [
            (f"{load} ({about}): QPS over {seconds} s: chart, Locust", *_both(counted / seconds, sent / seconds, "{:.1f}")),
            (f"{load}: P99, mean of {len(seen)} spans of {CHART_STEP} s: chart, Locust", *_both(charted, waited, "{:.1f} ms")),
            (f"{load}: the same: chart, what the answers said of themselves (`latency_ms`)", *_both(charted, told, "{:.1f} ms")),
            (f"{load}: between the portal's clock and Locust's (HTTP, threads and cores waited for): P50, P99", _middle_and_p99(outside), ""),
            (
                f"{load}: questions that Locust sent later than they were due, for want of a core or busy with another: P50, P99",
                _middle_and_p99(late),
                "",
            ),
        ]

    def _failures(self, rate: float) -> list[Row]:
        """A load of its own: a failed question waits while the server is tried again, and would be the P99 of all."""
        _, seen = self._charted(rate, distinct=QUESTIONS, failing=FAILING, failing_version=self._failing_version())
        errors, counted = sum(p["requests"] * p["error_rate"] for p, _ in seen), sum(p["requests"] for p, _ in seen)
        failed, sent = sum(one.is_failed for _, mine in seen for one in mine), sum(len(mine) for _, mine in seen)
        what = f"errors where {FAILING:.0%} of the questions go to a server that fails: chart, Locust"
        return [(what, *_both(errors / counted, failed / sent, "{:.2%}"))]

    def _charted(self, rate: float, **how) -> tuple[list[Asked], list[tuple[dict, list[Asked]]]]:
        """What Locust asked, and each span of the charts with those of it that ended there."""
        asked = self._load.press([(rate, CHART_SECONDS)], first=self._first(), **how)
        query = {"window": int(CHART_SECONDS) + 20, "step": CHART_STEP}
        points = self._portal.get("/api/v1/metrics/timeseries/", **query)["points"]
        return asked, [(p, mine) for p in points if (mine := _within(asked, datetime.fromisoformat(p["time"]).timestamp()))]

    def _failing_version(self) -> str:
        url = f"http://127.0.0.1:{self._failing_port}/v1"
        return self._portal.post("/api/v1/upstreams/", {"name": "failing", "base_url": url, "model": "failing"})["id"]

    def _computing(self) -> str:
        """The id of a version that takes long over its answers."""
        folder = random_model(COMPUTING, self._portal.home / "imports" / "computing")
        job = self._portal.post("/api/v1/model-versions/", {"name": "computing", "path": str(folder)})
        version = self._portal.wait_job(job)["model_version"]
        self._portal.wait_evaluated(version)  # which happens by itself, and takes a core while it does
        return version

    def swaps(self) -> list[Row]:
        first, second = self._portal.named("v1")["id"], self._portal.named("v2")["id"]
        rate, seconds = CALM_SHARE * self._uncached(), 2 * (SWAPS + 1) * SWAP_SECONDS
        with self._load.pressing([(rate, seconds)], distinct=QUESTIONS, first=self._first()) as asked:
            time.sleep(2 * SWAP_SECONDS)  # Locust starts
            for _ in range(SWAPS):
                self._portal.post(f"/api/v1/model-versions/{second}/promote/")
                time.sleep(SWAP_SECONDS)
                self._portal.post(f"/api/v1/model-versions/{second}/rollback/")
                time.sleep(SWAP_SECONDS)
        of = {version: sum(one.version == version for one in asked()) for version in (first, second)}
        failed = sum(not one.is_answered for one in asked())
        what = f"{SWAPS} promotions and {SWAPS} roll-backs at {rate:.0f} questions/s: answered by either version"
        return [
            (what, f"{of[first]:,} and {of[second]:,}", "both"),
            ("failed or refused", str(failed), "0"),
            ("P99", f"{percentile_ms(asked(), 0.99):.0f} ms", f"< {P99_MS:.0f} ms"),
        ]

    def _first(self) -> int:
        """The number of the first question of the next row."""
        self._fresh += FRESH
        time.sleep(CALM_DOWN_SECONDS)
        return self._fresh

    def _uncached(self) -> float:
        """What it can, of questions that are all new."""
        self._capacity = self._capacity or self._ramp(first=self._first())
        return self._capacity

    def _ramp(self, first_rate: float = RAMP_FIRST, growth: float = RAMP_GROWTH, **how) -> float:
        """The most answers a second of a stage of a growing load that ends where it is more than is answered."""
        stages = [(first_rate * growth**stage, RAMP_SECONDS) for stage in range(RAMP_STAGES)]
        asked = self._load.press(stages, until_full=True, **how)
        ended = [one.ended - asked[0].due for one in asked if one.is_answered]
        stages_run = range(int((asked[-1].due - asked[0].due) // RAMP_SECONDS) + 1)
        time.sleep(CALM_DOWN_SECONDS)
        return max(sum(int(at // RAMP_SECONDS) == stage for at in ended) for stage in stages_run) / RAMP_SECONDS

    def _memory(self) -> tuple[int, int]:
        """Bytes of all processes, what they share counted once (PSS), and how many they are: the autoscaler starts and ends some."""
        found = []
        for process in self._portal.processes():
            with suppress(psutil.Error):
                found.append(process.memory_full_info().pss)
        return sum(found), len(found)


def _recovery(asked: Sequence[Asked], ends: float) -> float:
    """Whole seconds after `ends`, from which on no question was refused or failed, and the P99 of those that were due in each second is good."""
    after = [one for one in asked if one.due >= ends]
    late = [one.due - ends for one in after if not one.is_answered or one.ms > P99_MS]
    return float(int(max(late, default=-1.0)) + 1) if late else 0.0


def _within(asked: Sequence[Asked], start: float) -> list[Asked]:
    """Those that ended in the span of a chart that begins at `start`; none where the load began or ended in it. What was told to come back later is
    no request in the charts, which draw it apart."""
    whole = asked[0].due <= start and start + CHART_STEP <= asked[-1].due
    return [one for one in asked if whole and start <= one.ended < start + CHART_STEP and one.status != 429]


def _as_sent_ms(one: Asked) -> float:
    """From when a question was sent, whatever came back: what Locust calls the response time."""
    return (one.ended - one.sent) * 1000


def _p99(found: Sequence[float]) -> float:
    return sorted(found)[-(-len(found) * 99 // 100) - 1]


def _middle_and_p99(found: Sequence[float]) -> str:
    return f"{sorted(found)[len(found) // 2]:.1f} ms, {_p99(found):.1f} ms"


def _both(charted: float, own: float, form: str) -> tuple[str, str]:
    return f"{form.format(charted)}, {form.format(own)} ({charted / own - 1:+.1%})", f"within {AGREE:.0%}"


class _Failing(BaseHTTPRequestHandler):
    """A model server that is up, lists its model, and answers nothing."""

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "failing", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(500, {"error": {"message": "out of order", "type": "server_error"}})

    def _send(self, status: int, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def failing_upstream() -> Iterator[int]:
    """Its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def trained_portal(home: Path | None, failing_port: int) -> Iterator[Stack]:
    """Version 1 is live; version 2 has passed its gate."""
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / "home"
        if home:
            shutil.copytree(home, own, ignore=shutil.ignore_patterns("redis", "run"))
        with Stack(own, env={"DSPORTAL_UPSTREAM_HOSTS": f"127.0.0.1:{failing_port}"}) as portal:
            if not home:
                teach(portal)
            portal.wait_answers()
            yield portal


def main() -> None:
    rows = ("replay", "overload", "charts", "swaps")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *rows], help="all where none is given")
    parser.add_argument("--minutes", type=float, default=0.1 if QUICK else 10.0, help="of the replay")
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    with failing_upstream() as failing_port, trained_portal(given.home, failing_port) as portal:
        load, began = os.getloadavg()[0], time.monotonic()
        measuring = Measuring(portal, 60 * given.minutes, failing_port)
        found = [row for name in given.rows or rows for row in getattr(measuring, name)()]
        took = time.monotonic() - began
    print("| what | measured | wanted |\n|---|---|---|")
    print("\n".join(f"| {what} | {measured} | {wanted} |" for what, measured, wanted in found))
    print(f"\n{os.cpu_count()} cores, shared with Locust; load of the machine before: {load:.1f}. The rows took {took:.0f} s.")


if __name__ == "__main__":
    main()
