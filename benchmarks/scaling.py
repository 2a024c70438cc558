"""S13: the load goes from 1,000 to 5,000 questions a second: when are capacity, queue and P99 back, under which policy?

    python -m benchmarks.scaling [--start SECONDS] [--rate ANSWERS_A_SECOND]

What one replica can do and how long it takes to start are measured here and now: our engine answers with a random `nano` on one thread,
and a real portal is told to run a second inference worker. The fleet they make is then simulated (`workers/scaling/simulator.py`).
"""

import argparse
import math
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

from benchmarks.serving import prompts, random_model
from workers.engine import open_engine
from workers.moe import load_tokenizer
from workers.scaling import Autoscaler, Observation, Policy
from workers.scaling.simulator import Fleet, Run, simulate

REPOSITORY = Path(__file__).resolve().parents[1]
BEFORE, AFTER, AT, SECONDS = 1000.0, 5000.0, 60.0, 300.0
TOKENS = 24  # of an answer, as of the demonstration's
MOST = 1000
QUEUE_LIMIT = 256.0  # answers in flight a replica, as a portal's own bound
START_PATIENCE = 180.0


# -- measured


def replica(folder: Path) -> tuple[float, float, float]:
    """Answers a second at concurrency 32, seconds of one answer alone, seconds to open the model and answer a first question."""
    began = time.perf_counter()
    engine = open_engine(folder, threads=1)
    questions = [[{"role": "user", "content": text}] for text in prompts(load_tokenizer(folder), 256)]
    engine.generate_all(questions[:1], TOKENS)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    engine.generate_all(questions[:1], TOKENS)
    alone = time.perf_counter() - began
    began = time.perf_counter()
    engine.generate_all(questions, TOKENS)
    rate = len(questions) / (time.perf_counter() - began)
    engine.close()
    return rate, alone, opened


def worker_start() -> float:
    """Seconds from the decision for a second inference worker until it is there, in a real portal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        env = {
            **os.environ, "PORT": str(port), "DSPORTAL_HOME": name, "DSPORTAL_DEMO": "0", "DSPORTAL_MAX_REPLICAS": "2",
            "DSPORTAL_ADMIN_PASSWORD": secrets.token_hex(12), "DSPORTAL_ADMIN_TOKEN": secrets.token_hex(16),
        }  # fmt: skip
        portal = subprocess.Popen([sys.executable, "-m", "dsportal.supervisor"], cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL)
        try:
            _until(lambda: _workers(port) == 1)
            began = time.monotonic()
            (home / "run" / "inference-replicas").write_text("2")
            _until(lambda: _workers(port) == 2)
            return time.monotonic() - began
        finally:
            portal.terminate()
            portal.wait(60)


def _workers(port: int) -> int:
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        found = re.search(r'^dsportal_workers\{role="inference"\} ([\d.]+)', answer.read().decode(), re.MULTILINE)
        return int(float(found[1])) if found else 0
    return 0


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("the portal's inference worker did not start")
        time.sleep(0.1)


# -- policies to compare


def ours(fleet: Fleet) -> Callable[[Observation], int]:
    scaler = Autoscaler(Policy(least=1, most=MOST, capacity=fleet.capacity))
    return lambda seen: scaler.decide(seen).replicas


def unknown_capacity(fleet: Fleet) -> Callable[[Observation], int]:
    """Ours before it has learnt what a replica can do: by queue and P99 alone."""
    scaler = Autoscaler(Policy(least=1, most=MOST))
    return lambda seen: scaler.decide(seen).replicas


def every(seconds: float, look: Callable[[Observation], int]) -> Callable[[Observation], int]:
    """A controller as Kubernetes has it: it looks rarely, and gives back only what was not wanted for five minutes."""
    last, wanted = -math.inf, deque[tuple[float, int]]()

    def looking(seen: Observation) -> int:
        nonlocal last
        if seen.at - last >= seconds:
            last = seen.at
            wanted.append((seen.at, look(seen)))
            while wanted[0][0] < seen.at - 300:
                wanted.popleft()
        return max(count for _, count in wanted)

    return looking


def by_cpu(fleet: Fleet) -> Callable[[Observation], int]:
    """HorizontalPodAutoscaler on 70 % of the processor: ⌈replicas · use / 0.7⌉, and no use is above 1."""

    def look(seen: Observation) -> int:
        use = min(1.0, seen.qps / (seen.ready * fleet.capacity)) if seen.queue < seen.ready else 1.0
        ratio = use / 0.7
        return seen.ready + seen.starting if 0.9 <= ratio <= 1.1 else math.ceil(seen.ready * ratio)

    return every(15, look)


def by_queue(fleet: Fleet) -> Callable[[Observation], int]:
    """KEDA's list length through the HorizontalPodAutoscaler: 16 waiting for each replica, at most twice as many in 15 s."""
    return every(15, lambda seen: max(1, min(2 * (seen.ready + seen.starting), math.ceil(seen.queue / 16), MOST)))


def by_alarm(fleet: Fleet) -> Callable[[Observation], int]:
    """One more whenever the P99 was above 500 ms, every 30 s."""
    return every(30, lambda seen: seen.ready + seen.starting + ((seen.p99_ms or 0) > 500))


POLICIES = {
    "ours: rate, queue and P99, every second": ours,
    "ours, capacity of a replica not yet known": unknown_capacity,
    "processor at 70 %, every 15 s": by_cpu,
    "queue length, 16 a replica, every 15 s": by_queue,
    "one more at each P99 alert, every 30 s": by_alarm,
}


def play(fleet: Fleet, policy: Callable[[Fleet], Callable[[Observation], int]]) -> Run:
    first = math.ceil(BEFORE / (fleet.capacity * 0.7))
    return simulate(lambda at: BEFORE if at < AT else AFTER, SECONDS, fleet, first, policy(fleet))


def row(name: str, fleet: Fleet, run: Run) -> str:
    capacity = run.seconds_until(AT, lambda m: m.ready * fleet.capacity >= AFTER)
    queue = run.seconds_until(AT, lambda m: m.queue <= 16 * m.ready)
    p99 = run.seconds_until(AT, lambda m: m.p99_ms is not None and m.p99_ms < 500)
    after = [m for m in run.moments if m.at >= AT]
    refused = sum(m.refused for m in after) / sum(m.qps for m in after)
    times = " | ".join("never" if t is None else f"{t:.0f} s" for t in (capacity, queue, p99))
    in_time = all(t is not None and t <= 30 for t in (capacity, queue, p99))
    most = max(m.ready for m in after)
    return f"| {name} | {times} | {refused:.1%} | {most} → {after[-1].ready} | {'yes' if in_time else 'no'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=float, help="seconds of a replica's start, instead of measuring")
    parser.add_argument("--rate", type=float, help="answers a second of one replica, instead of measuring")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rate, alone, opened = replica(random_model("nano", Path(name) / "model"))
    rate = given.rate or rate
    start = given.start or worker_start() + opened
    print(f"One replica (`nano`, FP32, one thread, {TOKENS} tokens an answer): {rate:,.0f} answers a second, {alone * 1000:.0f} ms alone.")
    print(f"It answers {start:.1f} s after the decision, {opened:.1f} s of which are the model's.\n")
    print(f"{BEFORE:,.0f} → {AFTER:,.0f} questions a second; seconds until all is well again, and stays so:\n")
    print("| policy | capacity | queue | P99 < 500 ms | refused | replicas: most → end | all within 30 s |\n|---|---|---|---|---|---|---|")
    fleet = Fleet(rate, start, alone, QUEUE_LIMIT)
    for name, policy in POLICIES.items():
        print(row(name, fleet, play(fleet, policy)))
    for slow in (15.0, 25.0, 60.0):
        later = Fleet(rate, slow, alone, QUEUE_LIMIT)
        print(row(f"ours, a replica that takes {slow:.0f} s to start", later, play(later, ours)))


if __name__ == "__main__":
    main()
