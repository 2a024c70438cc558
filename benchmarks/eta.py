"""The time left that a training tells after the first tenth of its steps, beside the time that it then really took.

python -m benchmarks.eta            1,000 steps of nano
python -m benchmarks.eta --short    120 steps
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.zero_memory import write_data

TOLD_AT = 0.1


def run(steps: int, folder: Path) -> tuple[float, float]:
    """Seconds left as told at the first progress event after a tenth, and the seconds of training that came after it."""
    write_data(folder)
    spec = {
        "dataset_folder": str(folder / "text"), "output_folder": str(folder / "model"), "work_folder": str(folder / "work"), "preset": "nano", "steps": steps,
        "log_every": 1, "log_every_seconds": 0,
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    child = subprocess.Popen(
        [sys.executable, "-m", "workers.training", str(folder / "spec.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = at = last = None
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == "step":
            last = event["elapsed"]
            at = last if told is None else at
        elif event["event"] == "progress" and told is None and TOLD_AT <= event["progress"] < 1 and event["eta_seconds"] is not None:
            told = event["eta_seconds"]
        elif event["event"] == "error":
            sys.exit(event["message"])
    child.wait()
    if told is None or at is None or last is None:
        sys.exit("The run was over before it told a time; take more steps.")
    return told, last - at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    steps = 120 if parser.parse_args().short or os.environ.get("BENCH_QUICK") else 1000
    with tempfile.TemporaryDirectory() as name:
        told, real = run(steps, Path(name))
    print("| steps | told at | seconds left, told | real | error |\n|---|---|---|---|---|")
    print(f"| {steps} | {TOLD_AT:.0%} | {told:.1f} | {real:.1f} | {told / real - 1:+.1%} |")


if __name__ == "__main__":
    main()
