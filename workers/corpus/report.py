"""What a processing run found, in figures (docs/architecture.md, report.json)."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from workers.corpus.classify import ClassifierReport
from workers.corpus.mixture import parts_of
from workers.corpus.records import CLAIM, DEDUPLICATED, Record


@dataclass(frozen=True)
class Stage:
    """How many rows were left when a stage was done."""

    stage: str
    rows: int


@dataclass(frozen=True)
class Augmentation:
    pairs: int
    well_formed: float  # share of the pairs whose question passes the check


def make_report(records: list[Record], funnel: list[Stage], augmentation: Augmentation, classifier: ClassifierReport) -> dict[str, Any]:
    kept = [record for record in records if record.kept]
    duplicates = [record for record in records if record.stage == DEDUPLICATED]
    negatives = [record for record in kept if record.kind == CLAIM and record.label is False]
    return {
        "funnel": [asdict(stage) for stage in funnel],
        "reasons": dict(Counter(record.reason for record in records if record.reason).most_common()),
        "domains": dict(Counter(record.domain for record in kept if record.domain).most_common()),
        "languages": dict(Counter(record.lang for record in kept if record.lang).most_common()),
        "kinds": dict(Counter(record.kind for record in kept).most_common()),
        "repaired": sum(record.original is not None for record in kept),
        "duplicates": {"clusters": len({record.cluster for record in duplicates}), "rows": len(duplicates)},
        "augmentation": asdict(augmentation),
        "mixture": parts_of(records),
        "negatives": {split: sum(record.split == split for record in negatives) for split in ("train", "eval")},
        "classifier": asdict(classifier),
    }
