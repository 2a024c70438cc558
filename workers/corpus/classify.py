"""The domain of every row: fastText trained on the labelled rows of the data set, measured on texts it has not seen."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import fasttext

from workers.corpus.records import CLAIM, DOCUMENT, ENTRY, QUESTION, RATING, Record

GENERAL = "general"  # what no domain claims
# The share of the probability below which a guess is not believed. Confidence alone misses advertisements: cleaning goes first.
MIN_CONFIDENCE = 0.25
MIN_ROWS_PER_DOMAIN = 4  # fewer can be learned from, but not measured
HELD_OUT_IN = 5  # one group in five is held out
DIMENSIONS, EPOCHS, LEARNING_RATE, WORD_NGRAMS, BUCKETS = 50, 30, 0.6, 2, 200_000
_LABEL = "__label__"
_TOKEN = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]+|[^\W_]+")
_HAN = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]")


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


def tokens_of(text: str) -> str:
    """Lower-case words, and Chinese as its characters and their bigrams, which do as well as a segmenter (FACTS)."""
    words: list[str] = []
    for run in _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _HAN.match(run):
            words += run
            words += [run[n : n + 2] for n in range(len(run) - 1)]
        else:
            words.append(run)
    return " ".join(words)


def classify(records: list[Record], defaults: Sequence[Example], work_folder: Path, seed: int) -> tuple[list[Record], ClassifierReport]:
    """Give every kept row a domain. `defaults`: labelled examples used when the rows themselves name fewer than two domains."""
    examples = [Example(r.content, r.domain, _group(r)) for r in records if r.kept and r.domain]
    if len({e.domain for e in examples}) < 2:
        examples += defaults
    unlabelled = [i for i, r in enumerate(records) if r.kept and not r.domain]
    if len({e.domain for e in examples}) < 2:
        return [replace(r, domain=GENERAL) if r.kept and not r.domain else r for r in records], ClassifierReport(labelled=len(unlabelled), unsure=len(unlabelled))
    report = _measure(examples, work_folder, seed)
    labelled, unsure = list(records), 0
    if unlabelled:
        guesses = _predict(_train(examples, work_folder, seed), [records[i].content for i in unlabelled])
        for i, (domain, confidence) in zip(unlabelled, guesses, strict=True):
            is_sure = confidence >= MIN_CONFIDENCE
            unsure += not is_sure
            labelled[i] = replace(records[i], domain=domain if is_sure else GENERAL)
    return labelled, replace(report, trained_on=len(examples), labelled=len(unlabelled), unsure=unsure)


def examples_from(records: Iterable[Record]) -> list[Example]:
    return [Example(r.content, r.domain, _group(r)) for r in records if r.domain]


def _group(record: Record) -> str:
    """What a text is about: its entry, its title, its cluster of near-duplicates."""
    if record.kind == ENTRY:
        return record.id
    if record.kind in (QUESTION, RATING, CLAIM, DOCUMENT) and record.source:
        return record.source
    return f"cluster {record.cluster}" if record.cluster is not None else record.id


def _is_held_out(group: str, seed: int) -> bool:
    return int.from_bytes(blake2b(f"{seed} {group}".encode(), digest_size=4).digest(), "big") % HELD_OUT_IN == 0


def _measure(examples: list[Example], work_folder: Path, seed: int) -> ClassifierReport:
    rows = Counter(e.domain for e in examples)
    held_out = [e for e in examples if _is_held_out(e.group, seed) and rows[e.domain] >= MIN_ROWS_PER_DOMAIN]
    known = [e for e in examples if not _is_held_out(e.group, seed)]
    if not held_out or len({e.domain for e in known}) < 2:
        return ClassifierReport()
    right: dict[str, int] = defaultdict(int)
    seen: dict[str, int] = defaultdict(int)
    for example, (domain, _) in zip(held_out, _predict(_train(known, work_folder, seed), [e.text for e in held_out]), strict=True):
        seen[example.domain] += 1
        right[example.domain] += domain == example.domain
    return ClassifierReport(
        accuracy=sum(right.values()) / len(held_out), per_domain={d: right[d] / seen[d] for d in sorted(seen)},
        held_out=len(held_out), held_out_rows={d: seen[d] for d in sorted(seen)},
    )  # fmt: skip


def _train(examples: list[Example], work_folder: Path, seed: int) -> "fasttext.FastText._FastText":
    work_folder.mkdir(parents=True, exist_ok=True)
    path = work_folder / "classifier.txt"
    path.write_text("".join(f"{_LABEL}{e.domain.replace(' ', '_')} {tokens_of(e.text)}\n" for e in examples), encoding="utf-8")
    # One thread: with more, fastText's updates race and a rerun gives another model.
    return fasttext.train_supervised(
        str(path), dim=DIMENSIONS, epoch=EPOCHS, lr=LEARNING_RATE, wordNgrams=WORD_NGRAMS, bucket=BUCKETS, minCount=1, thread=1, seed=seed, verbose=0
    )


def _predict(model: "fasttext.FastText._FastText", texts: list[str]) -> list[tuple[str, float]]:
    labels, confidences = model.predict([tokens_of(text) for text in texts])
    return [
        (label[0].removeprefix(_LABEL).replace("_", " ") if label else GENERAL, float(confidence[0]) if len(confidence) else 0.0)
        for label, confidence in zip(labels, confidences, strict=True)
    ]
