"""The answers behind an evaluation's figures, beside the baseline's to the same questions."""

import json
from dataclasses import dataclass

from apps import artifacts
from apps.registry.models import Evaluation

VIEWS = ("worst", "lost", "claims")


@dataclass(frozen=True)
class Pair:
    """One held-out question: what should be said, what was said, what the baseline said. BLEU 0 to 100 of each answer."""

    question: str
    reference: str
    domain: str
    is_claim: bool
    answer: str
    bleu: float
    refused: bool | None
    label: bool | None
    baseline_answer: str | None
    baseline_bleu: float | None

    @property
    def change(self) -> float | None:
        return None if self.baseline_bleu is None else self.bleu - self.baseline_bleu

    @property
    def is_right(self) -> bool | None:
        """Of a claim: a false one refused, a true one not."""
        return None if self.refused is None or self.label is None else self.refused != self.label


def _read(evaluation: Evaluation | None) -> dict[tuple[str, str], dict]:
    if evaluation is None or not evaluation.folder:
        return {}
    try:
        with artifacts.open_file(f"{evaluation.folder}/answers.jsonl") as file:
            rows = [json.loads(line) for line in file]
    except FileNotFoundError:
        return {}
    return {(row["kind"], row["question"]): row for row in rows}


def pairs(own: Evaluation | None, baseline: Evaluation | None, *, view: str = "worst", domain: str = "") -> list[Pair]:
    """`worst`: questions by BLEU, lowest first; `lost`: those that the baseline answered better, most lost first; `claims`: wrong ones first."""
    theirs = _read(baseline)
    found = [_pair(row, theirs.get(key)) for key, row in _read(own).items() if not domain or row.get("domain") == domain]
    if view == "claims":
        return sorted((p for p in found if p.is_claim), key=lambda p: bool(p.is_right))
    questions = [p for p in found if not p.is_claim]
    if view == "lost":
        return sorted((p for p in questions if p.change is not None and p.change < 0), key=lambda p: p.change or 0.0)
    return sorted(questions, key=lambda p: p.bleu)


def _pair(row: dict, theirs: dict | None) -> Pair:
    return Pair(
        question=row["question"], reference=row["reference"], domain=row.get("domain") or "", is_claim=row["kind"] == "claim", answer=row["answer"],
        bleu=row["bleu"], refused=row.get("refused"), label=row.get("label"),
        baseline_answer=theirs["answer"] if theirs else None, baseline_bleu=theirs["bleu"] if theirs else None,
    )  # fmt: skip
