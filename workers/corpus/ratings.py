"""Ratings become training questions: good answers weigh more, bad ones go, corrections are the truth."""

from collections import defaultdict
from dataclasses import replace

from workers.corpus.records import CLEANED, QUESTION, RATING, Record, normalised

LOW, HIGH = 2.0, 4.0  # a mean of at most LOW is not trained on; one of at least HIGH is trained on more
WEIGHT_OF_CORRECTION = 3.0
WEIGHT_OF_HIGH = {4: 2.0, 5: 3.0}
WEIGHT_ELSE = 0.5


def apply_ratings(records: list[Record]) -> list[Record]:
    """Turn kept rating rows into weighted questions, or drop them as `low_rating` or `corrected`.

    The same answer to the same question may have been rated by several people: their mean decides. A correction replaces the
    answer, whatever the ratings, those of other people too. Ratings are trained on, never held out: they are about answers, not about what is asked.
    """
    ratings: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for record in records:
        if record.kept and record.kind == RATING:
            ratings[_key(record)].append(record.rating or 0)
    corrected = {_key(r) for r in records if r.kept and r.kind == RATING and r.correction}
    return [_weighed(record, ratings, corrected) if record.kept and record.kind == RATING else record for record in records]


def _key(record: Record) -> tuple[str, ...]:
    return normalised(record.question or ""), normalised(record.answer or ""), record.image or ""


def _weighed(record: Record, ratings: dict[tuple[str, ...], list[int]], corrected: set[tuple[str, ...]]) -> Record:
    question = replace(record, kind=QUESTION, split="train")
    if record.correction:
        return replace(question, answer=record.correction, original=record.answer, weight=WEIGHT_OF_CORRECTION, variant="correction")
    if _key(record) in corrected:
        return record.dropped(CLEANED, "corrected")
    given = ratings[_key(record)]
    mean = sum(given) / len(given)
    if mean <= LOW:
        return record.dropped(CLEANED, "low_rating")
    return replace(question, weight=WEIGHT_OF_HIGH[int(mean)] if mean >= HIGH else WEIGHT_ELSE, variant="rating")
