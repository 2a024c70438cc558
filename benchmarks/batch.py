"""Chat while a batch runs: a batch in a process of its own at a job's priority, as the portal has it, beside the same batch in chat's own engine.

    python -m benchmarks.batch [--quick] [--preset small]

One asks question after question of an engine with half of the cores, as an inference worker has them; the three ways take turns in one run. Random
weights; FP32. The share of a batch's own process is a job's (ten steps of niceness below the rest, counted by session as Linux does).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from benchmarks.compression import make_parent
from workers.engine import Engine, EngineError, SamplingParams, open_engine

CORES = os.cpu_count() or 1
NICENESS = 10  # DSPORTAL_JOB_NICENESS
CHAT_TOKENS, BATCH_TOKENS, BATCH_TOGETHER = 48, 64, 31
QUESTION = "What is it number {}?"
WAYS = ("none", "in chat's engine", "in a process of its own")


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION.format(number)}]


def chat(engine: Engine, seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds to the first token, and between two, of each answer."""
    first, between, ends, number = [], [], time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        pieces: list[float] = []
        began = time.perf_counter()
        done = engine.submit(asked(number), SamplingParams(max_tokens=CHAT_TOKENS), lambda _piece, at=pieces: at.append(time.perf_counter())).result()
        ended = time.perf_counter()
        if done.tokens > 1 and pieces:
            first.append(1000 * (pieces[0] - began))
            between.append(1000 * (ended - pieces[0]) / (done.tokens - 1))
        number += 1
    return first, between


@contextmanager
def nobody(engine: Engine, folder: Path, work: Path) -> Iterator[list[int]]:
    yield [0]


@contextmanager
def within(engine: Engine, folder: Path, work: Path) -> Iterator[list[int]]:
    """Counts the batch's tokens in the list's only entry."""
    written, stop = [0], threading.Event()

    def keep_asking(number: int) -> None:
        while not stop.is_set():
            with suppress(EngineError):
                done = engine.submit(asked(number), SamplingParams(max_tokens=BATCH_TOKENS, temperature=1.0, seed=number), is_batch=True).result()
                written[0] += done.tokens
            number += BATCH_TOGETHER

    askers = [threading.Thread(target=keep_asking, args=(number,)) for number in range(BATCH_TOGETHER)]
    for asker in askers:
        asker.start()
    try:
        yield written
    finally:
        stop.set()
        so_far = written[0]
        for asker in askers:
            asker.join()
        written[0] = so_far  # without what was written while nobody chatted any more


@contextmanager
def beside(engine: Engine, folder: Path, work: Path) -> Iterator[list[int]]:
    work.mkdir()
    (work / "prompts.jsonl").write_text("".join(json.dumps({"prompt": QUESTION.format(number)}) + "\n" for number in range(100_000)))
    spec = {
        "version": 1, "model_folder": str(folder), "inputs": [str(work / "prompts.jsonl")], "output_folder": str(work / "out"),
        "work_folder": str(work), "max_tokens": BATCH_TOKENS, "temperature": 1.0, "threads": CORES,
    }  # fmt: skip
    (work / "spec.json").write_text(json.dumps(spec))
    child = subprocess.Popen(
        [sys.executable, "-m", "workers.batch", str(work / "spec.json")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    os.setpriority(os.PRIO_PROCESS, child.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS))
    with suppress(OSError):
        own = re.search(r"nice (-?\d+)", Path("/proc/self/autogroup").read_text())
        Path(f"/proc/{child.pid}/autogroup").write_text(str(min(19, int(own[1] if own else 0) + NICENESS)))
    journal, written = work / "journal.jsonl", [0]
    try:
        while not journal.exists() or not journal.stat().st_size:  # it loads the model
            if child.poll() is not None:
                raise SystemExit("the batch's process ended")
            time.sleep(0.05)
        skipped = len(journal.read_bytes().splitlines())
        yield written
        entries = journal.read_bytes().rsplit(b"\n", 1)[0].splitlines()[skipped:]
        written[0] = sum(json.loads(entry)["usage"]["completion_tokens"] for entry in entries)
    finally:
        child.kill()
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds: shows that it runs")
    parser.add_argument("--preset", default="small")
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    rounds, seconds = (1, 2.0) if quick else (3, 6.0)
    first: dict[str, list[float]] = {way: [] for way in WAYS}
    between: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens, took = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0.0)
    with (
        tempfile.TemporaryDirectory() as name,
        closing(open_engine(folder := make_parent(given.preset, Path(name)), threads=max(1, CORES // 2))) as engine,
    ):
        chat(engine, 1.0)
        for turn in range(rounds):
            for way, other in zip(WAYS, (nobody, within, beside), strict=True):
                began = time.monotonic()
                with other(engine, folder, Path(name) / f"{turn}") as written:
                    began = time.monotonic()
                    waited, wrote = chat(engine, seconds)
                    took[way] += time.monotonic() - began
                tokens[way] += written[0]
                first[way] += waited
                between[way] += wrote
    print("| a batch | first token, ms, P50 | P99 | between two tokens, ms, P50 | P99 | the batch's tokens/s |\n|---|---|---|---|---|---|")
    for way in WAYS:
        cells = [f"{share(values, part):.1f}" for values in (first[way], between[way]) for part in (50, 99)]
        print(f"| {way} | {' | '.join(cells)} | {tokens[way] / took[way]:,.0f} |")


def share(values: list[float], part: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1]


if __name__ == "__main__":
    main()
