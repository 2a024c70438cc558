"""Which uploaded questions and claims are held out for the evaluation: as the file says, else one in ten by hash."""

import hashlib
from collections import Counter
from dataclasses import replace

from workers.corpus.records import CLAIM, ENTRY, QUESTION, Record, normalised

TRAIN, EVAL = "train", "eval"
HELD_OUT_SHARE = 0.1
# With fewer questions than this a tenth of them says nothing, and training needs them all.
FEWEST_UNRELATED = 20


def chance(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on the seed and the parts alone, not on the order of rows."""
    digest = hashlib.blake2b("\0".join(map(str, (seed, *parts))).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def assign_splits(records: list[Record], seed: int) -> list[Record]:
    """Give every kept question and claim its split.

    A question is held out only while its fact is still taught: by its entry, or by another question with the same answer. A
    file of unrelated questions has none such; then one in ten is held out all the same, and measures what carries over.
    """
    entries = {r.id for r in records if r.kept and r.kind == ENTRY}
    facts = Counter(_fact(r) for r in records if r.kept and r.kind == QUESTION and r.split != EVAL)
    undecided = [i for i, r in enumerate(records) if r.kept and r.kind in (QUESTION, CLAIM) and r.split is None]
    done = list(records)
    for i in undecided:
        record, split = records[i], TRAIN
        taught_elsewhere = record.kind == CLAIM or record.source in entries or facts[_fact(record)] > 1
        if taught_elsewhere and chance(seed, "split", record.kind, record.question or record.text) < HELD_OUT_SHARE:
            split = EVAL
            facts[_fact(record)] -= 1
        done[i] = replace(record, split=split)
    return _hold_out_unrelated(done, undecided, entries, seed)


def _hold_out_unrelated(records: list[Record], undecided: list[int], entries: set[str], seed: int) -> list[Record]:
    questions = [i for i in undecided if records[i].kind == QUESTION]
    if entries or len(questions) < FEWEST_UNRELATED or any(r.kept and r.kind == QUESTION and r.split == EVAL for r in records):
        return records
    for i in questions:
        if chance(seed, "split", QUESTION, records[i].question) < HELD_OUT_SHARE:
            records[i] = replace(records[i], split=EVAL)
    return records


def _fact(record: Record) -> str:
    return record.source or normalised(record.answer or "")
