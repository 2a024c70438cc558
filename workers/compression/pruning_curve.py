"""The pruning curve: BLEU and bytes at each sparsity from 0 to 0.9, without recovery, and how far one may go."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workers.compression.measure import weight_bytes
from workers.compression.quality import evaluate
from workers.compression.spec import CompressSpec
from workers.compression.telling import span
from workers.evaluation.questions import HeldOut

SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Point:
    sparsity: float
    bleu: float
    bytes: int
    tokens_per_second: float


def draw(make: Callable[[float, Path], bool], rows: Sequence[HeldOut], spec: CompressSpec) -> dict[str, Any]:
    """The curve, and the largest sparsity on it that is good enough. `make` writes the model of a sparsity into a folder, and gives False where
    so small a share removes nothing. Empty without held-out questions, and for 2:4, which has one point only."""
    if not rows or spec.structure == "2:4":
        return {}
    folder = spec.work_folder / "curve"
    folder.parent.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    for number, sparsity in enumerate(SPARSITIES):
        with span(number / len(SPARSITIES), (number + 1) / len(SPARSITIES), f"Sparsity {sparsity:.1f}: "):
            if make(sparsity, folder):
                found = evaluate(folder, rows, spec)
                points.append(Point(sparsity, found["bleu"], weight_bytes(folder), found["tokens_per_second"]))
                shutil.rmtree(folder)
    return {"pruning_curve": [asdict(point) for point in points], "recommended_sparsity": recommended(points, spec.max_bleu_loss)}


def recommended(points: Sequence[Point], max_bleu_loss: float) -> float:
    """The largest sparsity up to which no point loses more than so many points of BLEU against the first."""
    best = 0.0
    for point in points:
        if point.bleu < points[0].bleu - max_bleu_loss:
            break
        best = point.sparsity
    return best
