"""The held-out questions and claims of an eval.jsonl, and the same sample of them for every model."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

QUESTION, CLAIM = "question", "claim"


@dataclass(frozen=True, slots=True)
class HeldOut:
    kind: str  # question or claim
    question: str
    reference: str
    lang: str | None
    domain: str | None
    label: bool | None = None  # of a claim
    image: str | None = None  # a data URL of the picture that is asked about


def read_held_out(path: Path) -> list[HeldOut]:
    """Rows of an eval.jsonl. Raises ValueError or KeyError where it is not one."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [HeldOut(r["kind"], r["question"], r["answer"], r.get("lang"), r.get("domain"), r.get("label"), r.get("image")) for r in rows]


def sample(rows: list[HeldOut], at_most: int | None, seed: int) -> list[HeldOut]:
    """At most so many of each kind, in file order. The same rows for the same file and seed: two versions meet the same questions."""
    chosen = {index for kind in (QUESTION, CLAIM) for index in _draw([i for i, row in enumerate(rows) if row.kind == kind], rows, at_most, seed)}
    return [row for index, row in enumerate(rows) if index in chosen]


def _draw(indices: list[int], rows: list[HeldOut], at_most: int | None, seed: int) -> list[int]:
    return sorted(indices, key=lambda i: hashlib.blake2b(f"{seed} {rows[i].question}{rows[i].image or ''}".encode()).digest())[:at_most]


def most_frequent_answer(rows: list[HeldOut]) -> str:
    """What a model without knowledge would best say to everything; of equally frequent ones the first by alphabet."""
    counts = Counter(row.reference for row in rows)
    return min(counts, key=lambda answer: (-counts[answer], answer))
