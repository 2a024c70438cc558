"""S11: the pruning curve of the demonstration's model: BLEU, bytes and speed at sparsities of 0 to 90 %, and what recovery gives back.

    python -m benchmarks.pruning [--quick] [--steps 150]

Every structure beside each other: zeros among single weights make the file smaller and nothing faster, removed neurons and experts make both. Where
a structure's file is first at least 30 % smaller, what is left learns again from the model as it was. The recommended point is the smallest file whose
BLEU is within one point, if it is at least 30 % smaller.
"""

import argparse
import os
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._demonstration import QUICK_STEPS, STEPS, trained
from workers.compression.measure import compare, sample_prompts, weight_bytes
from workers.compression.prune import run_prune
from workers.compression.quality import evaluate, held_out
from workers.compression.spec import CompressSpec
from workers.moe import load_tokenizer
from workers.protocol import JobError

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STRUCTURES: dict[str, dict[str, Any]] = {
    "single weights": {}, "single weights, of each layer": {"structure": "layer"}, "two of every four": {"structure": "2:4"},
    "neurons by weight": {"structure": "neuron"}, "neurons by use": {"structure": "neuron", "importance": "use"},
    "experts by weight": {"structure": "expert"}, "experts by use": {"structure": "expert", "importance": "use"},
}  # fmt: skip
WITHIN, SMALLER = 1.0, 0.3


@dataclass(frozen=True)
class Row:
    structure: str
    sparsity: float
    recovery: int
    bleu: float
    size: float  # of the parent's bytes
    speed: float  # next to the parent's, eight answers at a time

    @property
    def cell(self) -> str:
        return f"{self.bleu:.1f} ({self.size:.0%}, {self.speed:.2f}×)"


class Bench:
    def __init__(self, model: Path, data: Path, work: Path, threads: int, questions: int):
        self.base = CompressSpec(
            method="prune", model_folder=model, output_folder=work / "child", work_folder=work / "work", dataset_folder=data, threads=threads,
            max_questions=questions,
        )  # fmt: skip
        self.rows = held_out(self.base)
        self.prompts = sample_prompts(data, load_tokenizer(model), 0)
        self.bleu = self._quietly(evaluate, model, self.rows, self.base)["bleu"]

    def measure(self, name: str, sparsity: float, steps: int = 0) -> Row | None:
        """One child; None where so small a share removes nothing."""
        options = STRUCTURES[name] | ({} if name == "two of every four" else {"sparsity": sparsity})
        update = {**options, "steps": steps or None, "work_folder": self.base.work_folder / f"{name}-{sparsity}-{steps}"}
        spec = CompressSpec(**{**self.base.model_dump(), **update})
        try:
            self._quietly(partial(run_prune, draws_curve=False), spec)
        except JobError as error:
            if "removes not one" in str(error):
                return None
            raise
        found = self._quietly(evaluate, spec.output_folder, self.rows, self.base)
        ratio = compare(self.base.model_folder, spec.output_folder, self.prompts)["speed_ratio"]["batch_8"]
        return Row(name, sparsity, steps, found["bleu"], weight_bytes(spec.output_folder) / weight_bytes(self.base.model_folder), ratio)

    def good(self, row: Row) -> bool:
        return row.bleu >= self.bleu - WITHIN

    def _quietly(self, work: Any, *given: Any) -> Any:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            return work(*given)


def curves(bench: Bench, sparsities: tuple[float, ...]) -> list[Row]:
    print(f"BLEU {bench.bleu:.1f} before, on {len(bench.rows)} held-out questions. Each cell: BLEU (bytes next to the parent's, speed next to it).\n")
    print("| goes | " + " | ".join(f"{s:.0%}" for s in sparsities) + " |\n|---|" + "---|" * len(sparsities))
    found: list[Row] = []
    for name in STRUCTURES:
        rows = [bench.measure(name, sparsity) if name != "two of every four" or sparsity == 0.5 else None for sparsity in sparsities]
        print(f"| {name} | " + " | ".join(row.cell if row else "–" for row in rows) + " |", flush=True)
        found += [row for row in rows if row]
    return found


def recovered(bench: Bench, found: list[Row], steps: int) -> list[Row]:
    """Of each structure, the first sparsity whose file is small enough, after some steps of recovery."""
    print(f"\nAfter {steps} steps of recovery:\n\n| goes | sparsity | before | after |\n|---|---|---|---|")
    made: list[Row] = []
    for name in STRUCTURES:
        before = next((row for row in found if row.structure == name and row.size <= 1 - SMALLER), None)
        again = bench.measure(name, before.sparsity, steps) if before else None
        if before and again:
            print(f"| {name} | {before.sparsity:.0%} | {before.cell} | {again.cell} |", flush=True)
            made.append(again)
    return made


def recommended(bench: Bench, found: list[Row]) -> str:
    good = [row for row in found if bench.good(row) and row.size <= 1 - SMALLER]
    if not good:
        return f"No point keeps BLEU within {WITHIN:g} of {bench.bleu:.1f} in a file at least {SMALLER:.0%} smaller."
    best = min(good, key=lambda row: row.size)
    return (
        f"Recommended: {best.structure}, {best.sparsity:.0%} gone, {best.recovery} steps of recovery: BLEU {best.bleu:.1f}, "
        f"{1 - best.size:.0%} smaller, {best.speed:.2f} times the speed."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model that knows little, two sparsities: shows that it runs")
    parser.add_argument("--steps", type=int, default=150, help="of recovery")
    parser.add_argument("--model", type=Path, help="a model folder in place of the demonstration's, with --data")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    torch.set_num_threads(given.threads)
    model, data = (given.model, given.data) if given.model else trained(QUICK_STEPS if quick else STEPS, given.threads)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(model, data, Path(work), given.threads, 40 if quick else 658)
        found = curves(bench, (0.3, 0.6) if quick else SPARSITIES)
        found += recovered(bench, found, 3 if quick else given.steps)
        print(f"\n{recommended(bench, found)}")


if __name__ == "__main__":
    main()
