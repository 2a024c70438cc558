"""The pruning curve of the demonstration's model: BLEU, bytes and speed at sparsities of 0 to 90 %, without and with recovery.

    python -m benchmarks.pruning [--quick] [--steps 200]

Every structure beside each other: zeros among single weights make the file smaller and nothing faster, removed neurons and experts make both. The
recommended point is the largest sparsity of any curve whose BLEU is within one point and whose file is at least 30 % smaller.
"""

import argparse
import os
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._demonstration import QUICK_STEPS, STEPS, trained
from workers.compression.measure import compare, sample_prompts, weight_bytes
from workers.compression.prune import run_prune
from workers.compression.quality import evaluate, held_out
from workers.compression.spec import CompressSpec
from workers.moe import load_tokenizer

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STRUCTURES = {
    "single weights": {}, "single weights, of each layer": {"structure": "layer"},
    "neurons by weight": {"structure": "neuron"}, "neurons by use": {"structure": "neuron", "importance": "use"},
    "experts by use": {"structure": "expert", "importance": "use"},
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
            max_questions=questions, sparsity=0.5,
        )  # fmt: skip
        self.rows = held_out(self.base)
        self.prompts = sample_prompts(data, load_tokenizer(model), 0)
        self.bleu = self._quietly(evaluate, model, self.rows, self.base)["bleu"]

    def measure(self, name: str, options: dict[str, Any], sparsity: float, steps: int) -> Row:
        """The job itself measures its curve without recovery; here one child is made and measured at a time."""
        update = {**options, "sparsity": sparsity, "steps": steps or None, "work_folder": self.base.work_folder / f"{name}-{sparsity}-{steps}"}
        spec = CompressSpec(**{**self.base.model_dump(), **update, "max_questions": 1})
        self._quietly(run_prune, spec)
        found = self._quietly(evaluate, spec.output_folder, self.rows, self.base)
        ratio = compare(self.base.model_folder, spec.output_folder, self.prompts)["speed_ratio"]["batch_8"]
        return Row(name, sparsity, steps, found["bleu"], weight_bytes(spec.output_folder) / weight_bytes(self.base.model_folder), ratio)

    def _quietly(self, work: Any, *given: Any) -> Any:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            return work(*given)


def table(bench: Bench, sparsities: tuple[float, ...], steps: int) -> list[Row]:
    print(f"BLEU {bench.bleu:.1f} before, on {len(bench.rows)} held-out questions. Each cell: BLEU (bytes next to the parent's, speed next to it).\n")
    print("| goes | recovery | " + " | ".join(f"{s:.0%}" for s in sparsities) + " |\n|---|---|" + "---|" * len(sparsities))
    found: list[Row] = []
    for name, options in STRUCTURES.items():
        for recovery in (0, steps):
            rows: list[Row | None] = []
            for sparsity in sparsities:
                try:
                    rows.append(bench.measure(name, options, sparsity, recovery))
                except Exception as error:  # a share that removes no expert is a gap in the table
                    if "removes not one" not in str(error):
                        raise
                    rows.append(None)
            cells = " | ".join(row.cell if row else "–" for row in rows)
            print(f"| {name} | {f'{recovery} steps' if recovery else 'none'} | {cells} |", flush=True)
            found += [row for row in rows if row]
    return found


def recommended(bench: Bench, found: list[Row]) -> str:
    good = [row for row in found if row.bleu >= bench.bleu - WITHIN and row.size <= 1 - SMALLER]
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
    parser.add_argument("--steps", type=int, default=200, help="of recovery")
    parser.add_argument("--model", type=Path, help="a model folder in place of the demonstration's, with --data")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    torch.set_num_threads(given.threads)
    model, data = (given.model, given.data) if given.model else trained(QUICK_STEPS if quick else STEPS, given.threads)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(model, data, Path(work), given.threads, 40 if quick else 658)
        found = table(bench, (0.3, 0.6) if quick else SPARSITIES, 3 if quick else given.steps)
        print(f"\n{recommended(bench, found)}")


if __name__ == "__main__":
    main()
