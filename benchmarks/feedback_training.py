"""Does training on ratings make a model better? Short parents, ratings of their answers, children trained on those, all on the same held-out questions.

    python -m benchmarks.feedback_training [PARENT_STEPS [CHILD_STEPS]]

A parent (`nano`) learns 135 of the demonstration's entries for a short time. Then it is asked one question about each entry, never a held-out one, and
its answers are rated as a person with the entry at hand would: 5 where it says the same, else 1, and every second wrong answer is corrected.
The ratings become a dataset by the portal's own pipeline; each child starts from the parent and sees nothing but that dataset, at the defaults.
The stages before and after are the portal's own children too: processing, training, evaluation.

All of it is done for each of three seeds, on entries and with seeds that no rate was chosen on. A gain is the child's BLEU less its own parent's,
the mean over the seeds; its 95 % interval is paired (Koehn 2004): each of 1,000 resamples draws the held-out questions once, for parent and child
of all seeds alike. It speaks of other questions, the three gains beside it of other seeds.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.corpus.records import normalised
from workers.evaluation.bleu import CONFIDENCE, RESAMPLES, Statistics, corpus_bleu, statistics

ROOT = Path(__file__).resolve().parents[1]
KNOWLEDGE = ROOT / "demo" / "knowledge"
PARENT_STEPS, CHILD_STEPS = 120, 40
FILES = slice(6, 12)  # of the knowledge, a domain each; the rates were chosen on the first six (docs/decisions/fine-tuning.md), with seed 0
SEEDS = (1, 2, 3)
CHILDREN: dict[str, dict[str, Any]] = {
    "rating-weighted fine-tuning": {"lr": 1e-3, "matrix_lr": 4e-3},  # as apps.training.services has it for datasets of ratings
    "LoRA of rank 8": {"lora": {}},
    "DPO": {"objective": "dpo"},
    "KTO": {"objective": "kto"},
}


def child(module: str, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one of the portal's children and return its result."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.json"
    path.write_text(json.dumps({"version": 1, **spec}))
    command = [sys.executable, "-m", module, str(path)]
    # Its standard input stays open: a child ends itself when that closes.
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
    if process.returncode:
        raise RuntimeError(f"{module}: {events[-1:]} {(folder / 'log').read_text()[-2000:]}")
    return events[-1]["result"]


def process(files: list[Path], folder: Path) -> Path:
    child("workers.corpus", {"inputs": [str(f) for f in files], "output_folder": str(folder / "data"), "work_folder": str(folder / "work")}, folder)
    return folder / "data"


def train(dataset: Path, folder: Path, **options: Any) -> dict[str, Any]:
    places = {"dataset_folder": str(dataset), "output_folder": str(folder / "model"), "work_folder": str(folder / "work")}
    quiet = {"threads": os.cpu_count() or 1, "sample_every_seconds": 3600, "checkpoint_every_seconds": 3600}
    return child("workers.training", {**places, **quiet, **options}, folder)


def answer(model: Path, eval_file: Path, folder: Path) -> list[dict[str, Any]]:
    """The answers of an evaluation to the questions (not the claims) of a file."""
    spec = {"model_folder": str(model), "eval_file": str(eval_file), "output_folder": str(folder), "threads": os.cpu_count() or 1}
    child("workers.evaluation", spec, folder)
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "question"]


def asked_of_each_entry(dataset: Path, path: Path) -> Path:
    """One training question of each entry, as a file that an evaluation reads."""
    rows = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()]
    by_entry: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == "question" and row["source"]:
            by_entry[row["source"]] = row  # the last phrasing
    path.write_text("".join(json.dumps(row) + "\n" for row in by_entry.values()))
    return path


def rate(answers: list[dict[str, Any]], path: Path) -> dict[str, int]:
    """Write the ratings as the portal exports them; how many of which."""
    rows: list[dict[str, Any]] = []
    wrong = 0
    for each in answers:
        right = normalised(each["answer"]) == normalised(each["reference"])
        row = {
            "question": each["question"],
            "answer": each["answer"] or "?",
            "rating": 5 if right else 1,
            "domain": each["domain"],
            "lang": each["lang"],
        }
        wrong += not right
        rows.append(row | ({"correction": each["reference"]} if not right and wrong % 2 else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"good": len(rows) - wrong, "bad": wrong, "corrected": sum("correction" in row for row in rows)}


def one_seed(seed: int, dataset: Path, folder: Path, steps: tuple[int, int]) -> tuple[dict[str, int], dict[str, list[dict[str, Any]]]]:
    """How many answers of this seed's parent were rated how, and what it and its children answer to the held-out questions, by name."""
    held_out = dataset / "eval.jsonl"
    train(dataset, folder / "parent", preset="nano", steps=steps[0], seed=seed)
    parent = folder / "parent" / "model"
    answers = {"parent": answer(parent, held_out, folder / "before")}
    counts = rate(answer(parent, asked_of_each_entry(dataset, folder / "asked.jsonl"), folder / "asked"), folder / "ratings.jsonl")
    rated = process([folder / "ratings.jsonl"], folder / "rated")
    for what, options in CHILDREN.items():
        train(rated, folder / what, parent_folder=str(parent), steps=steps[1], seed=seed, **options)
        answers[what] = answer(folder / what / "model", held_out, folder / what / "after")
    return counts, answers


def statistics_of(answers: list[dict[str, Any]]) -> Statistics:
    return statistics([row["answer"] for row in answers], [row["reference"] for row in answers], [row["lang"] for row in answers])


def paired_gain(before: list[Statistics], after: list[Statistics], seed: int = 0) -> tuple[list[float], float, float]:
    """BLEU gained by each seed's child over its parent, and the 95 % interval of the mean. Rows are the same questions in all."""
    questions = len(before[0])
    drawn = np.random.default_rng(seed).multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES)

    def gains(times: NDArray[np.int64]) -> list[float]:
        return [corpus_bleu(times[:, None] * b) - corpus_bleu(times[:, None] * a) for a, b in zip(before, after, strict=True)]

    low, high = np.quantile([np.mean(gains(times)) for times in drawn], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return gains(np.ones(questions, np.int64)), float(low), float(high)


def main() -> None:
    quick = bool(os.environ.get("BENCH_QUICK"))
    steps = (int(sys.argv[1]) if len(sys.argv) > 1 else PARENT_STEPS, int(sys.argv[2]) if len(sys.argv) > 2 else CHILD_STEPS)
    steps, seeds = ((8, 4), SEEDS[:2]) if quick else (steps, SEEDS)
    by_name: dict[str, list[list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = process(sorted(KNOWLEDGE.glob("*.jsonl"))[FILES], folder / "knowledge")
        for seed in seeds:
            counts, answers = one_seed(seed, dataset, folder / str(seed), steps)
            print(
                f"Seed {seed}: {counts['good'] + counts['bad']} answers rated, {counts['good']} good, {counts['bad']} bad, of which {counts['corrected']} corrected.",
                flush=True,
            )
            for what, said in answers.items():
                by_name.setdefault(what, []).append(said)
    parents = [statistics_of(said) for said in by_name.pop("parent")]
    print(f"\n{len(parents[0])} held-out questions; {steps[0]} steps of a parent, {steps[1]} of each child.\n")
    print("| | BLEU, by seed | gained, by seed | mean gain | 95 %, paired | |\n|---|---|---|---|---|---|")
    print(f"| the parent | {listed([corpus_bleu(p) for p in parents])} | | | | |")
    for what, said in by_name.items():
        children = [statistics_of(each) for each in said]
        gains, low, high = paired_gain(parents, children)
        remark = "beats its parent" if low > 0 and min(gains) > 0 else "worse than its parent" if high < 0 else "not told apart"
        scores = listed([corpus_bleu(c) for c in children])
        print(f"| {what} | {scores} | {listed(gains, '+')} | {np.mean(gains):+.1f} | {low:+.1f} – {high:+.1f} | {remark} |")


def listed(numbers: list[float], sign: str = "") -> str:
    return " / ".join(f"{number:{sign}.1f}" for number in numbers)


if __name__ == "__main__":
    main()
