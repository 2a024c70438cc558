"""Claims to judge: true ones, and false ones made from true statements by wrong facts, wrong numbers and broken logic.

A model is trained to confirm or refuse them; false claims that it never met are held out, and so is another way of asking
about true ones.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from workers.corpus.mixture import (
    FALSE_CLAIM_WEIGHT,
    FALSE_CLAIMS_PER_ENTRY,
    HELD_OUT_CLAIMS_SHARE,
    OTHER_KINDS_SHARE,
    SAME_DOMAIN_SHARE,
    TRUE_CLAIM_WEIGHT,
)
from workers.corpus.records import CLAIM, ENTRY, Record, normalised
from workers.corpus.splits import EVAL, TRAIN, chance
from workers.corpus.subjects import ASKED, CLAUSE, PERSON, Subject, lower_case_words, statement_of, subject_of
from workers.corpus.verdicts import verdict_for

WRONG_FACT, WRONG_NUMBER, BROKEN_LOGIC, TRUE_CLAIM = "wrong_fact", "wrong_number", "broken_logic", "true_claim"
_TRIES = 30
# How sentences begin that do not begin with a name.
_OPENING_WORD = re.compile(r"(?:The|An?|In|On|At|It|They|There|This|These|That|All|Some|Every|Most|Many|Each|No|When|If|After|Before|During)$")
_NUMBER = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\w.,]\d)|(?<![\w.,])\d+(?:\.\d+)?(?![\w]|[.,]\d)")
_CATEGORY = re.compile(r"(?:is|was) an? ((?:[a-z-]+ ){0,3}?[a-z-]+) (?:that|which|in|of|with|used|made|where|whose|for|on|by|from|to)\b")
_ZH_CATEGORY = re.compile(r"是一[种个门类项](?:[^，。；]{0,20}的)?([^，。；的]{2,6})(?=[，。；]|$)")
_VAGUE_CATEGORY = re.compile(r"(?:unit|kind|type|form|set|part|group|series|piece|pair|number|amount)$")


@dataclass(frozen=True)
class Fact:
    """An entry that claims can be made of: its statement begins with its subject."""

    entry: Record
    statement: str
    subject: Subject


@dataclass(frozen=True)
class Claim:
    variant: str
    clause: str  # as it stands inside a question, without a final stop
    label: bool
    owner: Subject | None = None  # what the predicate is true of, where there is such a thing


@dataclass(frozen=True)
class Asked:
    """A claim with the way it is asked about (which of the verdict's questions)."""

    split: str
    claim: Claim
    form: int
    weight: float = 1.0


def make_claims(records: list[Record], *, seed: int, first_row: int) -> list[Record]:
    """True and false claims of the kept entries, for training and held out, numbered from `first_row`."""
    lower_words = lower_case_words(r.content for r in records if r.kept and r.lang != "zh")
    facts = [fact for r in records if r.kept and r.kind == ENTRY for fact in [_fact(r, lower_words)] if fact]
    partners: dict[tuple, list[Fact]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: (fact.entry.id, fact.statement)):  # so that the order of rows does not matter
        partners[_agreement(fact)].append(fact)
        partners[(*_agreement(fact), fact.entry.domain)].append(fact)
    made: list[Record] = []
    for fact in facts:
        for number, asked in enumerate(_claims(fact, partners, seed), 1):
            made.append(_record(fact, asked, number, first_row + len(made)))
    return made


def ask_claim(record: Record) -> Record:
    """An uploaded claim with the question and the answer it is trained on."""
    verdict = verdict_for(record.lang)
    clause = _as_clause(record.text or "")
    return replace(record, question=verdict.ask(clause), answer=verdict.yes if record.label else verdict.no)


def _fact(entry: Record, lower_words: frozenset[str]) -> Fact | None:
    lang = entry.lang or "en"
    statement = statement_of(entry.text or "", lang)
    subject = subject_of(entry.title or "", statement, lang, lower_words)
    if subject.predicate is None or subject.kind in (ASKED, CLAUSE):
        return None
    return Fact(entry, statement, subject)


def _agreement(fact: Fact) -> tuple[str, bool, str]:
    """Facts whose predicates can change places: same language, same number, persons with persons, same tense of to be."""
    subject = fact.subject
    opening = re.match(r"is|are|was|were", subject.predicate or "") if subject.lang != "zh" else re.match(r"是", subject.predicate or "")
    return subject.lang, subject.kind == PERSON, f"{subject.is_plural} {opening[0] if opening else ''}"


def _claims(fact: Fact, partners: dict[tuple, list[Fact]], seed: int) -> Iterator[Asked]:
    """All claims of one entry. A held-out true claim is asked in a form in which training did not ask it; a false one is new."""
    rng = random.Random(f"{seed} claims {fact.entry.id} {fact.entry.title}")
    form = rng.randrange(2)
    true = Claim(TRUE_CLAIM, _clause(fact.subject, fact.subject.predicate or ""), True, fact.subject)
    is_held_out = chance(seed, "claims", fact.entry.id, fact.entry.title) < HELD_OUT_CLAIMS_SHARE
    false = _false_claims(fact, partners, rng, how_many=FALSE_CLAIMS_PER_ENTRY + is_held_out)
    if is_held_out:
        yield Asked(TRAIN, true, form, TRUE_CLAIM_WEIGHT)
        yield Asked(EVAL, true, 1 - form)
        # A changed number is not held out: that asks how exactly a fact is remembered, not whether it is known.
        if new := next((claim for claim in false if claim.variant != WRONG_NUMBER), None):
            false.remove(new)
            yield Asked(EVAL, new, rng.randrange(2))
    else:
        yield from (Asked(TRAIN, true, each, TRUE_CLAIM_WEIGHT / 2) for each in (0, 1))
    # Where no partner fits, those that were found weigh more.
    yield from (Asked(TRAIN, claim, rng.randrange(2), min(1.0, FALSE_CLAIMS_PER_ENTRY * FALSE_CLAIM_WEIGHT / len(false))) for claim in false)


def _false_claims(fact: Fact, partners: dict[tuple, list[Fact]], rng: random.Random, how_many: int) -> list[Claim]:
    """Different false claims of one entry, in random order; fewer where it has no fitting partners."""
    found: dict[str, Claim] = {}
    if rng.random() < OTHER_KINDS_SHARE:
        own = [claim for claim in (_wrong_number(fact, rng), _broken_logic(fact)) if claim]
        found |= {claim.clause: claim for claim in own}
    for _ in range(_TRIES):
        if len(found) >= how_many:
            break
        claim = _wrong_fact(fact, partners, rng)
        if claim:
            found.setdefault(claim.clause, claim)
    claims = list(found.values())[:how_many]
    rng.shuffle(claims)
    return claims


def _wrong_fact(fact: Fact, partners: dict[tuple, list[Fact]], rng: random.Random) -> Claim | None:
    """This subject with what is true of another."""
    key = _agreement(fact)
    near = partners[(*key, fact.entry.domain)]
    pool = near if rng.random() < SAME_DOMAIN_SHARE and len(near) > 1 else partners[key]
    other = rng.choice(pool)
    if other is fact or _are_related(fact, other):
        return None
    return Claim(WRONG_FACT, _clause(fact.subject, other.subject.predicate or ""), False, other.subject)


def _are_related(a: Fact, b: Fact) -> bool:
    """Whether what is said of one may hold of the other: one names the other, or both say nearly the same."""
    one, other = normalised(a.statement), normalised(b.statement)
    if normalised(a.subject.mention) in other or normalised(b.subject.mention) in one:
        return True
    words, others = _shingles(a.subject.predicate or ""), _shingles(b.subject.predicate or "")
    return len(words & others) > 0.4 * min(len(words), len(others))


def _shingles(text: str) -> set[str]:
    plain = normalised(text)
    return {plain[i : i + 4] for i in range(max(len(plain) - 3, 1))}


def _wrong_number(fact: Fact, rng: random.Random) -> Claim | None:
    """The statement with one of its numbers changed."""
    predicate = fact.subject.predicate or ""
    numbers = list(_NUMBER.finditer(predicate))
    if not numbers:
        return None
    chosen = rng.choice(numbers)
    return Claim(WRONG_NUMBER, _clause(fact.subject, predicate[: chosen.start()] + _other_number(chosen[0], rng) + predicate[chosen.end() :]), False)


def _other_number(written: str, rng: random.Random) -> str:
    """A number of the same look that nobody would take for the same: years move by decades, others at least double."""
    plain = written.replace(",", "")
    if "." in plain:
        return f"{float(plain) * rng.choice((2, 3, 5)):.{len(plain.split('.')[1])}f}"
    value = int(plain)
    if 1000 <= value <= 2100 and "," not in written:
        return str(value - rng.choice((20, 30, 40, 60, 110)))
    changed = value * rng.choice((2, 3)) + rng.choice((1, 2, 3))
    return f"{changed:,}" if "," in written else str(changed)


def _broken_logic(fact: Fact) -> Claim | None:
    """The converse of a definition: from "gold is a metal that …" does not follow that every metal is gold."""
    subject = fact.subject
    match = (_ZH_CATEGORY if subject.lang == "zh" else _CATEGORY).match(subject.predicate or "")
    if not match or _VAGUE_CATEGORY.search(match[1]) or normalised(match[1]) in normalised(subject.mention) or subject.is_plural:
        return None
    return Claim(BROKEN_LOGIC, f"所有的{match[1]}都是{subject.mention}" if subject.lang == "zh" else f"every {match[1]} is {subject.mention}", False)


def _clause(subject: Subject, predicate: str) -> str:
    if subject.lang == "zh":
        return f"{subject.mention}{predicate}"
    return f"{subject.mention}{'' if predicate.startswith(',') else ' '}{predicate}"


def _as_clause(sentence: str) -> str:
    """A sentence without its stop, to stand inside a question; its first word in lower case where it is no name."""
    clause = sentence.strip().rstrip("。.!！")
    first = clause.split(" ", 1)[0]
    return clause[0].lower() + clause[1:] if _OPENING_WORD.match(first) else clause


def _record(fact: Fact, asked: Asked, number: int, row: int) -> Record:
    entry, claim, verdict = fact.entry, asked.claim, verdict_for(fact.entry.lang)
    sentence = (
        fact.subject.opening + claim.clause.removeprefix(fact.subject.mention) if claim.clause.startswith(fact.subject.mention) else claim.clause
    )
    sentence = (
        f"{sentence}。" if fact.subject.lang == "zh" else f"{sentence[0].upper() if claim.variant == BROKEN_LOGIC else sentence[0]}{sentence[1:]}."
    )
    return Record(
        row=row, id=f"{entry.id}/c{number}", kind=CLAIM, text=sentence, question=verdict.ask(claim.clause, asked.form),
        answer=verdict.name(claim.owner.mention) if claim.owner else verdict.no, label=claim.label, domain=entry.domain, lang=entry.lang, source=entry.id,
        split=asked.split, variant=claim.variant, weight=asked.weight,
    )  # fmt: skip
