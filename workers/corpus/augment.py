"""Knowledge entries become questions and answers. One phrasing of each entry is held out for the evaluation."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from workers.corpus.mixture import CASUAL_WEIGHT, HELD_OUT_TEMPLATE_SHARE, OWN_QUESTION_WEIGHT, PHRASINGS_PER_ENTRY
from workers.corpus.phrasing import Phrasing, fault_of, held_out, trained
from workers.corpus.questions_from_statements import questions_from
from workers.corpus.records import ENTRY, QUESTION, Record, normalised
from workers.corpus.splits import EVAL, TRAIN, chance
from workers.corpus.subjects import lower_case_words, statement_of, subject_of

CASUAL = "casual"


@dataclass(frozen=True)
class Augmented:
    """`rows` are the well-formed pairs and the casual ways of asking; `pairs` counts all pairs made, `well_formed` those that passed the check."""

    rows: list[Record]
    pairs: int
    well_formed: int


def make_pairs(records: list[Record], *, seed: int, first_row: int) -> Augmented:
    """Question–answer pairs for every kept entry, each with `source` = the entry's id. Rows are numbered from `first_row`."""
    lower_words = lower_case_words(r.content for r in records if r.kept and r.lang != "zh")
    asked = {normalised(r.question) for r in records if r.kept and r.question and not r.image}  # about a picture, the same words ask something else
    rows: list[Record] = []
    made = well_formed = 0
    for entry in (r for r in records if r.kept and r.kind == ENTRY):
        answer = statement_of(entry.text or "", entry.lang or "en")
        numbered: list[Record] = []
        for split, phrasing, weight in _phrasings(entry, answer, seed, lower_words):
            if normalised(phrasing.question) in asked:
                continue  # somebody asked it with an answer of their own, or another entry has this title
            made += 1
            if fault_of(phrasing.question, answer, entry.lang or "en"):
                continue
            well_formed += 1
            asked.add(normalised(phrasing.question))
            name = f"q{len(numbered) + 1}" if split == TRAIN else "held-out"
            numbered.append(_pair(entry, phrasing, answer, split, name, weight))
        first = next((pair.question for pair in numbered if pair.split == TRAIN), None)
        if first:
            casual = casually(first, entry.lang or "en", chance(seed, CASUAL, entry.id, entry.title))
            numbered.append(_pair(entry, Phrasing(CASUAL, casual), answer, TRAIN, CASUAL, CASUAL_WEIGHT))
        rows += [replace(pair, row=first_row + len(rows) + n) for n, pair in enumerate(numbered)]
    return Augmented(rows, made, well_formed)


def casually(question: str, lang: str, dice: float) -> str:
    """The question as somebody types it in a hurry. `dice` in [0, 1) says how."""
    bare = question.rstrip("?？.。")
    if lang == "zh":
        return bare if dice < 0.5 else bare + "?"
    return bare.lower() if dice < 0.6 else bare if dice < 0.8 else question.lower()


def _pair(entry: Record, phrasing: Phrasing, answer: str, split: str, name: str, weight: float) -> Record:
    return Record(
        row=-1, id=f"{entry.id}/{name}", kind=QUESTION, question=phrasing.question, answer=answer, domain=entry.domain, lang=entry.lang,
        source=entry.id, split=split, variant=phrasing.variant, weight=weight,
    )  # fmt: skip


def _phrasings(entry: Record, answer: str, seed: int, lower_words: frozenset[str]) -> Iterator[tuple[str, Phrasing, float]]:
    """(split, phrasing, weight), the most usual training phrasing first of its split."""
    rng = random.Random(f"{seed} {entry.id} {entry.title}")
    subject = subject_of(entry.title or "", answer, entry.lang or "en", lower_words)
    kept_out, known = held_out(subject, rng)
    yield EVAL, kept_out, 1.0
    yield from ((TRAIN, phrasing, 1.0) for phrasing in trained(subject, rng, PHRASINGS_PER_ENTRY))
    yield from ((TRAIN, phrasing, OWN_QUESTION_WEIGHT) for phrasing in questions_from(subject, answer)[:1])
    if chance(seed, "held-out template", entry.id, entry.title) < 2 * HELD_OUT_TEMPLATE_SHARE:  # two templates share the entries
        yield TRAIN, known, 1.0
