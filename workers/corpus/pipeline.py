"""From files to a processed dataset: a list of small steps, each a name and a function from rows to rows."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workers.corpus.advancing import Advance
from workers.corpus.augment import make_pairs
from workers.corpus.classify import ClassifierReport, classify
from workers.corpus.clean import clean
from workers.corpus.deduplicate import deduplicate
from workers.corpus.definitions import entries_in
from workers.corpus.folder import goes_to, write_folder
from workers.corpus.mixture import weigh_documents
from workers.corpus.negatives import ask_claim, make_claims
from workers.corpus.preferences import Preferences, preferences_in
from workers.corpus.ratings import apply_ratings
from workers.corpus.reading import read_rows
from workers.corpus.records import (
    AUGMENTED,
    CLAIM,
    CLASSIFIED,
    CLEANED,
    DEDUPLICATED,
    DOCUMENT,
    NEGATIVES,
    RAW,
    USED,
    BadRow,
    Record,
    normalised,
    parse,
)
from workers.corpus.report import Augmentation, Stage, make_report
from workers.corpus.spec import ProcessSpec
from workers.corpus.splits import assign_splits

DAMAGED_EXCERPT = 300

Progress = Callable[[float, str], None]


@dataclass
class Findings:
    """What steps learn beside the rows."""

    pairs: int = 0
    well_formed: int = 0
    classifier: ClassifierReport = field(default_factory=ClassifierReport)
    preferences: Preferences = field(default_factory=lambda: Preferences([], []))
    definitions: list[Record] = field(default_factory=list)  # entries found in a data set of documents alone


@dataclass(frozen=True)
class Step:
    stage: str
    said: str  # what people are told while it runs
    apply: Callable[[list[Record], Advance], list[Record]]
    share: float  # of the time, roughly


def process(spec: ProcessSpec, progress: Progress) -> dict[str, Any]:
    """Run all steps and write the folder. Returns its report. Raises UnreadableFile."""
    findings = Findings()
    steps = pipeline(spec, findings)
    progress(0.0, "Reading")
    records = read(spec.inputs)
    funnel = [Stage(RAW, len(records))]
    done = 0.05
    for step in steps:
        advance = _within(step, done, f"{step.said} ({sum(r.kept for r in records):,} rows)", progress)
        advance(0.0)
        records = step.apply(records, advance)
        funnel.append(Stage(step.stage, sum(r.kept for r in records)))
        done += step.share
    records = [replace(r, stage=USED) if r.kept else r for r in records]
    progress(done, "Writing")
    report = make_report(
        records, funnel, Augmentation(findings.pairs, findings.well_formed / findings.pairs if findings.pairs else 1.0), findings.classifier
    )
    preferences = findings.preferences.without({normalised(r.question or "") for r in records if r.kept and goes_to(r) == "eval"})
    report["preferences"] = preferences.counts()
    write_folder(spec.output_folder, records, report, [*preferences.pairs, *preferences.judged])
    return report


def _within(step: Step, began: float, said: str, progress: Progress) -> Advance:
    return lambda share: progress(began + share * step.share, said)


def pipeline(spec: ProcessSpec, findings: Findings) -> list[Step]:
    return [
        Step(CLEANED, "Cleaning", lambda records, advance: _clean(records, findings, advance), 0.4),
        Step(DEDUPLICATED, "Looking for duplicates", deduplicate, 0.25),
        Step(CLASSIFIED, "Telling domains", lambda records, _: _classify(records, spec, findings), 0.2),
        Step(AUGMENTED, "Asking questions", lambda records, _: _augment(records, spec.seed, findings), 0.05),
        Step(NEGATIVES, "Making false claims", lambda records, _: _add_claims(records, spec.seed, findings), 0.03),
        Step(USED, "Keeping held-out questions apart", lambda records, _: _mix(records, findings), 0.02),
    ]


def read(paths: list[Path]) -> list[Record]:
    """All rows of all files, good and bad, numbered on. An id that came before gets its row's number, so that sources are clear."""
    records: list[Record] = []
    seen: set[str] = set()
    for path in paths:
        for raw in read_rows(path):
            record = _record(len(records), raw.fields, raw.error)
            if record.id in seen:
                record = replace(record, id=f"{record.id}-{record.row}")
            seen.add(record.id)
            records.append(record)
    return records


def _record(row: int, fields: dict[str, Any] | None, error: str | None) -> Record:
    if fields is None:
        return Record(row=row, id=f"r{row}", kind="unreadable").dropped(RAW, error or "unreadable")
    try:
        return parse(row, fields)
    except BadRow as bad:
        excerpt = " ".join(str(value) for name, value in fields.items() if name != "image" and isinstance(value, str | int | float))[:DAMAGED_EXCERPT]
        own = fields.get("id")
        return Record(row=row, id=own if isinstance(own, str) and own else f"r{row}", kind="unreadable", text=excerpt or None).dropped(
            RAW, bad.reason
        )


def _clean(records: list[Record], findings: Findings, advance: Advance) -> list[Record]:
    cleaned = clean(records, advance)
    findings.preferences = preferences_in(cleaned)
    return apply_ratings(cleaned)


def _classify(records: list[Record], spec: ProcessSpec, findings: Findings) -> list[Record]:
    labelled, findings.classifier = classify(records, spec.work_folder, spec.seed)
    return labelled


def _augment(records: list[Record], seed: int, findings: Findings) -> list[Record]:
    records = assign_splits(records, seed)
    if {r.kind for r in records if r.kept} == {DOCUMENT}:
        findings.definitions = entries_in(records)
    made = make_pairs([*records, *findings.definitions], seed=seed, first_row=len(records))
    findings.pairs, findings.well_formed = made.pairs, made.well_formed
    return records + made.rows


def _add_claims(records: list[Record], seed: int, findings: Findings) -> list[Record]:
    records = [ask_claim(r) if r.kept and r.kind == CLAIM and not r.question else r for r in records]
    return records + make_claims([*records, *findings.definitions], seed=seed, first_row=len(records))


def _mix(records: list[Record], findings: Findings) -> list[Record]:
    # Where the documents are all there is, they are what is to be learned, whatever was asked about them.
    return keep_apart(records) if findings.definitions else weigh_documents(keep_apart(records))


def keep_apart(records: list[Record]) -> list[Record]:
    """Drop what is trained on and asked in the held-out set too, and the second of two rows that ask the same."""
    held_out = {_asks(r) for r in records if r.kept and goes_to(r) == "eval"}
    seen: set[tuple[str | None, ...]] = set()
    return [_drop_repeated(record, held_out, seen) for record in records]


def _drop_repeated(record: Record, held_out: set[tuple[str | None, ...]], seen: set[tuple[str | None, ...]]) -> Record:
    split = goes_to(record)
    if not record.kept or split is None or not record.question:
        return record
    if split == "train" and _asks(record) in held_out:
        return record.dropped(USED, "held_out")
    # To the letter: a question without its mark, as people type it, is another row. Rows that were uploaded met the sieve before.
    asked = record.kind, record.question, record.image
    if asked in seen:
        return record.dropped(USED, "exact_duplicate")
    seen.add(asked)
    return record


def _asks(record: Record) -> tuple[str | None, ...]:
    return record.kind, normalised(record.question or ""), record.image
