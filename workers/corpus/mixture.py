"""How much of what a training set holds: the one place for these numbers.

A small model on two cores reads some 1.5 million tokens in the minutes a demonstration takes (measured: 600 facts need about
27 readings of 2,100 rows), so every row beside a fact's phrasings costs. A row's `weight` says how often an epoch sees it:
several rows with small weights give variety at the price of one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from workers.corpus.folder import goes_to
from workers.corpus.languages import count_words
from workers.corpus.records import CLAIM, DOCUMENT, QUESTION, Record

# -- questions made of an entry
PHRASINGS_PER_ENTRY = 3  # with fewer a held-out phrasing is answered by its words, not by its meaning; more are read less often
# A question that the statement answers by its own form ("Which organ pumps blood?") comes beside the phrasings of the title.
OWN_QUESTION_WEIGHT = 0.5
# Held-out phrasings are new to their entry, but not to the model: their meaning is learned from this share of the others.
HELD_OUT_TEMPLATE_SHARE = 0.15
# People type lower case and forget the question mark: each entry is also asked so, now and then.
CASUAL_WEIGHT = 0.34

# -- claims made of an entry
# The model is to know "this subject with another's predicate" from "with its own", not a list of false sentences: several
# different falsehoods, each seen rarely, cost as much as one seen always. Their weights sum to the true claim's, so that
# neither verdict is the better guess.
FALSE_CLAIMS_PER_ENTRY = 4
TRUE_CLAIM_WEIGHT = 1.0
FALSE_CLAIM_WEIGHT = TRUE_CLAIM_WEIGHT / FALSE_CLAIMS_PER_ENTRY
# Of the entries a number or a broken inference can be made of, so many get one; the rest get another entry's fact.
OTHER_KINDS_SHARE = 0.25
SAME_DOMAIN_SHARE = 0.5  # the harder half: a fact of the same field
HELD_OUT_CLAIMS_SHARE = 0.15

# -- documents
# Beside questions, documents are what the model hears of language, not what it is asked: all of their tokens are learned,
# a question's only in its answer, so even this share is felt.
DOCUMENT_TOKEN_SHARE = 0.05
SMALLEST_WEIGHT = 0.001


@dataclass(frozen=True)
class Part:
    """Rows of one kind in one split. `tokens`: per epoch, weights counted, estimated from words and Han characters; a picture's are not among them."""

    split: str
    kind: str
    rows: int
    tokens: int
    pictures: int  # rows with one


def weigh_documents(records: list[Record]) -> list[Record]:
    """Give documents the weight with which they are DOCUMENT_TOKEN_SHARE of what training reads, at most 1."""
    documents = [i for i, r in enumerate(records) if r.kept and r.kind == DOCUMENT]
    others = sum(r.weight * tokens_in(r) for r in records if r.kept and r.kind in (QUESTION, CLAIM) and goes_to(r) == "train")
    if not documents or not others:
        return records
    present = sum(tokens_in(records[i]) for i in documents)
    wanted = others * DOCUMENT_TOKEN_SHARE / (1 - DOCUMENT_TOKEN_SHARE)
    weight = max(min(1.0, wanted / present), SMALLEST_WEIGHT)
    weighed = list(records)
    for i in documents:
        weighed[i] = replace(records[i], weight=round(weight, 4))
    return weighed


def parts_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What train.jsonl and eval.jsonl hold, by kind."""
    rows: Counter[tuple[str, str]] = Counter()
    pictures: Counter[tuple[str, str]] = Counter()
    tokens: defaultdict[tuple[str, str], float] = defaultdict(float)
    for record in records:
        split = goes_to(record) if record.kept else None
        if split:
            rows[split, record.kind] += 1
            pictures[split, record.kind] += record.image is not None
            tokens[split, record.kind] += record.weight * tokens_in(record)
    return [
        asdict(Part(split, kind, rows[split, kind], round(tokens[split, kind]), pictures[split, kind])) for split, kind in sorted(rows, reverse=True)
    ]


def tokens_in(record: Record) -> float:
    """About as many as a tokenizer of a few thousand entries makes: 1.3 a word, one a Han character, two for the turns."""
    text = record.text if record.kind == DOCUMENT else f"{record.question} {record.answer}"
    return 1.3 * count_words(text or "") + 2
