"""Does training on ratings make a model better? A short parent, ratings of its answers, children trained on those, all on the same held-out questions.

    python -m benchmarks.feedback_training [PARENT_STEPS [CHILD_STEPS]]

The parent (`nano`) learns 144 of the demonstration's entries for a short time. Then it is asked one question about each entry, never a held-out one, and
its answers are rated as a person with the entry at hand would: 5 where it says the same, else 1, and every second wrong answer is corrected.
The ratings become a dataset by the portal's own pipeline; each child starts from the parent and sees nothing but that dataset, at the defaults.
The stages before and after are the portal's own children too: processing, training, evaluation.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workers.corpus.records import normalised

ROOT = Path(__file__).resolve().parents[1]
KNOWLEDGE = ROOT / "demo" / "knowledge"
PARENT_STEPS, CHILD_STEPS = 120, 40
FILES = 6  # of the knowledge, a domain each: enough to see, few enough to wait for
CHILDREN: dict[str, dict[str, Any]] = {
    "rating-weighted fine-tuning": {"lr": 1e-3, "matrix_lr": 4e-3},  # as apps.training.services has it for datasets of ratings
    "the same, at the rates of a first training": {},
    "LoRA of rank 8": {"lora": {}},
    "DPO": {"objective": "dpo"},
    "DPO and the chosen answers' likelihood": {"objective": "dpo", "chosen_likelihood": 1.0},
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


def answer(model: Path, eval_file: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of an evaluation, and the answers behind them."""
    spec = {"model_folder": str(model), "eval_file": str(eval_file), "output_folder": str(folder), "threads": os.cpu_count() or 1}
    figures = child("workers.evaluation", spec, folder)
    return figures, [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def asked_of_each_entry(dataset: Path, path: Path) -> Path:
    """One training question of each entry, as a file that an evaluation reads."""
    rows = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()]
    by_entry: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == "question" and row["source"]:
            by_entry[row["source"]] = row  # the last phrasing
    path.write_text("".join(json.dumps(row) + "\n" for row in by_entry.values()))
    return path


def rate(answers: list[dict[str, Any]], path: Path) -> tuple[Path, dict[str, int]]:
    """The ratings as the portal exports them, and how many of which."""
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
    return path, {"good": len(rows) - wrong, "bad": wrong, "corrected": sum("correction" in row for row in rows)}


def main() -> None:
    parent_steps = int(sys.argv[1]) if len(sys.argv) > 1 else PARENT_STEPS
    child_steps = int(sys.argv[2]) if len(sys.argv) > 2 else CHILD_STEPS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = process(sorted(KNOWLEDGE.glob("*.jsonl"))[:FILES], folder / "knowledge")
        train(dataset, folder / "parent", preset="nano", steps=parent_steps)
        parent = folder / "parent" / "model"
        before, _ = answer(parent, dataset / "eval.jsonl", folder / "before")
        _, answers = answer(parent, asked_of_each_entry(dataset, folder / "asked.jsonl"), folder / "asked")
        ratings, counts = rate(answers, folder / "ratings.jsonl")
        rated = process([ratings], folder / "rated")
        print(
            f"{counts['good'] + counts['bad']} answers rated: {counts['good']} good, {counts['bad']} bad, of which {counts['corrected']} corrected; ",
            end="",
        )
        print(f"{before['questions']} held-out questions; {parent_steps} steps of the parent, {child_steps} of each child.\n")
        print("| | BLEU | 95 % | answers to the letter | |\n|---|---|---|---|---|")
        print(line("the parent", before, ""))
        for what, options in CHILDREN.items():
            place = folder / what
            train(rated, place, parent_folder=str(parent), steps=child_steps, **options)
            after, _ = answer(place / "model", dataset / "eval.jsonl", place / "after")
            print(line(what, after, "beats its parent" if after["bleu_low"] > before["bleu_high"] else ""), flush=True)


def line(what: str, figures: dict[str, Any], remark: str) -> str:
    return f"| {what} | {figures['bleu']:.1f} | {figures['bleu_low']:.1f}–{figures['bleu_high']:.1f} | {figures['exact_match']:.0%} | {remark} |"


if __name__ == "__main__":
    main()
