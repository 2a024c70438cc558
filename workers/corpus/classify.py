"""The domain of every row: fastText trained on the labelled rows of the data set, measured on texts it has not seen."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import fasttext

from workers.corpus.domain_words import examples_of, words_of_text
from workers.corpus.records import ENTRY, QUESTION, RATING, Record

GENERAL = "general"  # what no domain claims
# A guess is believed from twice the share that pure chance gives it, and always from a quarter on. (With 28 domains and 30 examples
# each, a demand for a quarter turned down three of four right guesses.) It misses advertisements: cleaning goes first.
CHANCES, ENOUGH_CONFIDENCE = 2.0, 0.25
MIN_ROWS_PER_DOMAIN = 4  # fewer can be learned from, but not measured
HELD_OUT_IN = 5  # one group in five is held out
DIMENSIONS, WORD_NGRAMS, BUCKETS = 50, 2, 200_000
# (epochs, learning rate): few examples must be read more often, and with more care.
READING_FEW, READING_MANY, MANY_EXAMPLES = (60, 0.3), (10, 0.6), 5_000
_LABEL = "__label__"


@dataclass(frozen=True)
class ClassifierReport:
    accuracy: float | None = None  # on held-out texts; None when there were too few labels to measure
    per_domain: dict[str, float] = field(default_factory=dict)
    held_out: int = 0
    held_out_rows: dict[str, int] = field(default_factory=dict)
    trained_on: int = 0
    labelled: int = 0  # rows that had no domain and got one
    unsure: int = 0  # of those, the ones put under `general`


@dataclass(frozen=True, slots=True)
class Example:
    text: str
    domain: str
    group: str  # texts of one group stay on one side of the split: near copies would flatter the accuracy


def classify(records: list[Record], work_folder: Path, seed: int) -> tuple[list[Record], ClassifierReport]:
    """Give every kept row a domain; a labelled row keeps its own. Rows that name fewer than two domains are sorted by the known words alone."""
    examples = examples_from(records)
    named = {e.domain for e in examples}
    hints = hints_for(examples)
    unlabelled = [i for i, r in enumerate(records) if r.kept and not r.domain]
    report = measure(examples, hints, work_folder, seed) if len(named) > 1 else ClassifierReport()
    labelled, unsure = list(records), 0
    if unlabelled:
        classifier = _train([*examples, *hints], work_folder, seed)
        needed = min(ENOUGH_CONFIDENCE, CHANCES / len(classifier.domains))
        guesses = _predict(classifier, [records[i].content for i in unlabelled])
        for i, (domain, confidence) in zip(unlabelled, guesses, strict=True):
            is_sure = confidence >= needed
            unsure += not is_sure
            labelled[i] = replace(records[i], domain=domain if is_sure else GENERAL)
    return labelled, replace(report, trained_on=len(examples), labelled=len(unlabelled), unsure=unsure)


def hints_for(examples: Iterable[Example]) -> list[Example]:
    """The known words of the fields that these examples name; of all fields, where they name fewer than two."""
    named = {e.domain for e in examples}
    return [Example(text, domain, "words") for domain, text in examples_of(named if len(named) > 1 else None)]


def examples_from(records: Iterable[Record]) -> list[Example]:
    return [Example(r.content, r.domain, _group(r)) for r in records if r.kept and r.domain]


def _group(record: Record) -> str:
    """What a text is about: its entry or its cluster of near-duplicates. The site of a document says nothing of that."""
    if record.kind in (QUESTION, RATING) and record.source:
        return record.source
    return f"cluster {record.cluster}" if record.cluster is not None and record.kind != ENTRY else record.id


def _is_held_out(group: str, seed: int) -> bool:
    return int.from_bytes(blake2b(f"{seed} {group}".encode(), digest_size=4).digest(), "big") % HELD_OUT_IN == 0


def measure(examples: Sequence[Example], hints: Sequence[Example], work_folder: Path, seed: int) -> ClassifierReport:
    rows = Counter(e.domain for e in examples)
    held_out = [e for e in examples if _is_held_out(e.group, seed) and rows[e.domain] >= MIN_ROWS_PER_DOMAIN]
    known = [e for e in examples if not _is_held_out(e.group, seed)]
    if not held_out or len({e.domain for e in known}) < 2:
        return ClassifierReport()
    right: dict[str, int] = defaultdict(int)
    seen: dict[str, int] = defaultdict(int)
    guesses = _predict(_train([*known, *hints], work_folder, seed), [e.text for e in held_out])
    for example, (domain, _) in zip(held_out, guesses, strict=True):
        seen[example.domain] += 1
        right[example.domain] += domain == example.domain
    return ClassifierReport(
        accuracy=sum(right.values()) / len(held_out), per_domain={d: right[d] / seen[d] for d in sorted(seen)},
        held_out=len(held_out), held_out_rows={d: seen[d] for d in sorted(seen)},
    )  # fmt: skip


@dataclass(frozen=True)
class Classifier:
    """A fastText model whose labels are numbers: a domain may hold any character."""

    model: "fasttext.FastText._FastText"
    domains: Sequence[str]


def _train(examples: list[Example], work_folder: Path, seed: int) -> Classifier:
    domains = sorted({e.domain for e in examples})
    number = {domain: n for n, domain in enumerate(domains)}
    work_folder.mkdir(parents=True, exist_ok=True)
    path = work_folder / "classifier.txt"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{_LABEL}{number[e.domain]} {words_of_text(e.text)}\n" for e in examples)
    epochs, rate = READING_MANY if len(examples) > MANY_EXAMPLES else READING_FEW
    # One thread: with more, fastText's updates race and a rerun gives another model.
    model = fasttext.train_supervised(
        str(path), dim=DIMENSIONS, epoch=epochs, lr=rate, wordNgrams=WORD_NGRAMS, bucket=BUCKETS, minCount=1, thread=1, seed=seed, verbose=0
    )
    path.unlink()
    return Classifier(model, domains)


def _predict(classifier: Classifier, texts: list[str]) -> list[tuple[str, float]]:
    """(domain, confidence) of each text; a text without a known word is `general` with confidence 0."""
    lines = [words_of_text(text) for text in texts]
    labels, confidences = classifier.model.predict(lines)
    return [
        (classifier.domains[int(label[0].removeprefix(_LABEL))], float(confidence[0])) if _knows_a_word(classifier, line) else (GENERAL, 0.0)
        for line, label, confidence in zip(lines, labels, confidences, strict=True)
    ]


def _knows_a_word(classifier: Classifier, line: str) -> bool:
    """Without this, two unknown words would be judged by whatever other pair of words shares their bucket."""
    return any(classifier.model.get_word_id(word) >= 0 for word in line.split())
