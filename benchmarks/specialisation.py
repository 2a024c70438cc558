"""What drawing the experts apart by domain gives, and what it costs: the demonstration, learnt with and without it.

    python -m benchmarks.specialisation [STEPS [QUESTIONS]]

Each run is the `nano` preset for the same steps, seed and order of examples, in a child process as the portal's jobs are; its answers to the
held-out questions are scored by an evaluation. Bits are the mutual information of expert and domain in each layer; by chance: what one
shuffle of the domains in twenty still reaches. Load: fullest and emptiest expert over the mean, in the worst layer.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 480
RUNS = (("softmax", 0.0), ("softmax", 0.3), ("softmax", 1.0), ("sigmoid", 0.0), ("sigmoid", 0.3))


def child(package: str, folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The result of one job. RuntimeError with what it said where it failed."""
    path = folder / f"{package}.json"
    path.write_text(json.dumps(spec, default=str))
    command = [sys.executable, "-m", f"workers.{package}", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]  # stdin stays open meanwhile: a child ends with its parent
    if events[-1]["event"] != "done":
        raise RuntimeError(f"{package}: {events[-1]}")
    return events[-1]["result"]


def row(router: str, weight: float, trained: dict[str, Any], scored: dict[str, Any]) -> str:
    layers = trained["specialisation"]["layers"]
    bits, chance = (" / ".join(f"{layer[key]:.2f}" for layer in layers) for key in ("bits", "chance_high"))
    loads = f"{trained['expert_load_max_over_mean']:.2f} | {trained['expert_load_min_over_mean']:.2f}"
    score = f"{scored['bleu']:.1f} ({scored['bleu_low']:.1f} – {scored['bleu_high']:.1f})"
    return f"| {router} | {weight:g} | {bits} | {chance} | {loads} | {trained['loss']:.3f} | {score} |"


def main() -> None:
    quick = bool(os.environ.get("BENCH_QUICK"))
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10 if quick else STEPS
    questions = int(sys.argv[2]) if len(sys.argv) > 2 else 40 if quick else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = sorted((ROOT / "demo").rglob("*.jsonl"))
        child("corpus", folder, {"version": 1, "inputs": inputs, "output_folder": folder / "data", "work_folder": folder})
        print(f"{steps} steps of nano\n")
        print("| router | domain_routing | bits, by layer | by chance | load, max/mean | min/mean | loss | held-out BLEU (95 %) |")
        print("|---|---|---|---|---|---|---|---|")
        for router, weight in RUNS:
            place = folder / f"{router}-{weight}"
            place.mkdir()
            trained = child("training", place, {
                "dataset_folder": folder / "data", "output_folder": place / "model", "work_folder": place, "router": router, "domain_routing": weight,
                "steps": steps, "threads": os.cpu_count() or 1, "sample_every_seconds": 1e6, "checkpoint_every_seconds": 1e6,
            })  # fmt: skip
            scored = child("evaluation", place, {
                "version": 1, "model_folder": place / "model", "eval_file": folder / "data" / "eval.jsonl", "output_folder": place / "answers",
                "max_questions": questions, "threads": os.cpu_count() or 1,
            })  # fmt: skip
            print(row(router, weight, trained, scored), flush=True)


if __name__ == "__main__":
    main()
