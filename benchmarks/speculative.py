"""Speculative decoding: tokens a second with a draft and without, answers compared token by token, in one run on one core.

    python -m benchmarks.speculative [--quick] [--model FOLDER --data FOLDER --student FOLDER] [--preset small]

The demonstration's model with its student and its INT8 child as drafts, answering held-out questions greedily and drawn; and a larger one of random
weights with its INT8 child, as the gain grows with what a forward of the model costs beside one of the draft. Seconds are of processor time.
The engine chooses how far ahead it guesses, 0 included, and has learnt that from the same questions before it is measured: what is told is what an
operator gets who chooses the draft.
"""

import argparse
import os
import tempfile
import time
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks._demonstration import QUICK_STEPS, STEPS, trained
from benchmarks.compression import make_parent
from workers.compression.distill import run_distill
from workers.compression.int8 import run_int8
from workers.compression.quality import held_out
from workers.compression.spec import CompressSpec
from workers.engine import Engine, SamplingParams, open_engine

CONCURRENCY = (1, 8)
ROUNDS = 3
WARM_ROUNDS = 2

Questions = list[list[dict[str, str]]]


def make(run: Any, model: Path, output: Path, **options: Any) -> Path:
    spec = CompressSpec(method=options.pop("method"), model_folder=model, output_folder=output, work_folder=output.with_name("work"), **options)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        run(spec)
    return output


def ask(engine: Engine, questions: Questions, together: int, sampling: dict[str, Any]) -> list[tuple[int, ...]]:
    """The answers' tokens, `together` at a time."""
    said: list[tuple[int, ...]] = []
    for start in range(0, len(questions), together):
        asked = enumerate(questions[start : start + together], start)
        tickets = [engine.submit(question, SamplingParams(seed=number, logprobs=0, **sampling)) for number, question in asked]
        said += [tuple(t.token for t in ticket.result().logprobs) for ticket in tickets]
    return said


def rows(title: str, model: Path, drafts: dict[str, Path | None], questions: Questions, sampling: dict[str, Any]) -> list[str]:
    """One of the table for each draft."""
    found: dict[str, list[str]] = {name: [] for name in drafts}
    for together in CONCURRENCY:
        base, plain = 0.0, None
        for name, folder in drafts.items():
            with closing(open_engine(model, threads=1, draft=folder)) as engine:
                ask(engine, questions * WARM_ROUNDS, together, sampling)  # an engine lives for days: it has learnt how far ahead to guess
                best = 0.0
                for _ in range(ROUNDS):
                    began = time.process_time()
                    said = ask(engine, questions, together, sampling)
                    best = max(best, sum(len(s) + 1 for s in said) / (time.process_time() - began))
                stats = engine.stats()
            plain, base = plain or said, base or best
            assert said == plain, f"{name} gave other answers"
            right = f"{stats.accepted_tokens / stats.guessed_tokens:.0%}" if stats.guessed_tokens else "–"
            told = f"{best:,.0f} ({best / base:.2f}×)"
            found[name].append(told if folder is None else f"{told}, {right} right, {stats.completion_tokens / stats.decode_turns:.2f} a step")
    return [f"| {title} | {name} | " + " | ".join(cells) + " |" for name, cells in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model that knows little: shows that it runs")
    parser.add_argument("--model", type=Path, help="a model folder in place of the demonstration's, with --data")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--student", type=Path, help="its student, else one learns for two minutes")
    parser.add_argument("--preset", default="small", help="of the larger model")
    parser.add_argument("--threads", type=int, default=2, help="of training")
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    torch.set_num_threads(given.threads)
    model, data = (given.model, given.data) if given.model else trained(QUICK_STEPS if quick else STEPS, given.threads)
    print("| model | draft | " + " | ".join(f"tokens/s, {n} at a time" for n in CONCURRENCY) + " |\n|---|---|" + "---|" * len(CONCURRENCY))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        length: dict[str, Any] = {"steps": 20} if quick else {"minutes": 2.0}
        options = {"dataset_folder": data, "threads": given.threads}
        student = given.student or make(run_distill, model, work / "student", method="distill", **options, **length)
        drafts = {"none": None, "its student": student, "its INT8 child": make(run_int8, model, work / "int8", method="int8", **options)}
        judge = CompressSpec(method="int8", model_folder=model, output_folder=work, work_folder=work, dataset_folder=data)
        questions = [[{"role": "user", "content": row.question}] for row in held_out(judge)[: 16 if quick else 160]]
        for told, sampling in {"greedy": {}, "temperature 0.8": {"temperature": 0.8}}.items():
            print("\n".join(rows(f"demonstration, {told}", model, drafts, questions, {"max_tokens": 64, **sampling})), flush=True)
        torch.manual_seed(0)
        larger = make_parent("nano" if quick else given.preset, work)
        drafts = {"none": None, "its INT8 child": make(run_int8, larger, work / "larger-int8", method="int8", threads=1)}
        print("\n".join(rows(f"{given.preset}, random weights, greedy", larger, drafts, questions[:32], {"max_tokens": 96})))
    print("\nAll answers are the same token by token as without a draft.")


if __name__ == "__main__":
    main()
