"""What ratings say of answers rather than of facts: which of two is better, and which are good or bad by themselves.

Written to `preferences.jsonl` for preference training: pairs for DPO, single judged answers for KTO. That an answer was low-rated is
what it teaches, so rows that `workers.corpus.ratings` drops from the questions are in here.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workers.corpus.ratings import HIGH, LOW
from workers.corpus.records import RATING, Record, normalised

CORRECTION = 6.0  # a correction's score: the truth, above the best rating


@dataclass(frozen=True)
class Answer:
    """One answer to one question, with the mean of its ratings."""

    text: str
    score: float
    record: Record


@dataclass(frozen=True)
class Preferences:
    """Rows of preferences.jsonl. `pairs`: question, chosen, rejected. `judged`: question, answer, good (bool)."""

    pairs: list[dict[str, Any]]
    judged: list[dict[str, Any]]

    def without(self, questions: set[str]) -> "Preferences":
        """Nothing that is held out; `questions` are normalised."""

        def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [row for row in rows if normalised(row["question"]) not in questions]

        return Preferences(kept(self.pairs), kept(self.judged))

    def counts(self) -> dict[str, int]:
        good = sum(row["good"] for row in self.judged)
        return {"pairs": len(self.pairs), "good": good, "bad": len(self.judged) - good}


def preferences_in(records: Iterable[Record]) -> Preferences:
    """Of all kept rating rows, before they become questions.

    A pair is an answer of at least a middling score and a worse one to the same question; the best answer is set against each
    worse one, not every answer against every other, so that a much-rated question does not drown the rest. An answer is good
    or bad by itself where its score is high or low. The mean of several people's ratings of one answer is its score.
    """
    pairs: list[dict[str, Any]] = []
    judged: list[dict[str, Any]] = []
    for answers in _by_question(records).values():
        best = max(answers, key=lambda answer: answer.score)
        for answer in answers:
            described = {"domain": answer.record.domain, "lang": answer.record.lang}
            if best.score > LOW and answer.score < min(best.score, HIGH if best.score == CORRECTION else best.score):
                pairs.append({"kind": "pair", "question": answer.record.question, "chosen": best.text, "rejected": answer.text, **described})
            if not LOW < answer.score < HIGH:
                judged.append(
                    {"kind": "judged", "question": answer.record.question, "answer": answer.text, "good": answer.score >= HIGH, **described}
                )
    return Preferences(pairs, judged)


def _by_question(records: Iterable[Record]) -> dict[str, list[Answer]]:
    ratings: dict[str, dict[str, list[tuple[float, str, Record]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if not (record.kept and record.kind == RATING and record.question and record.answer) or record.image:
            continue  # preference training reads text: the same question about two pictures is not one question
        of_question = ratings[normalised(record.question)]
        of_question[normalised(record.answer)].append((float(record.rating or 0), record.answer, record))
        if record.correction and normalised(record.correction) != normalised(record.answer):
            of_question[normalised(record.correction)].append((CORRECTION, record.correction, record))
    return {question: [_answer(given) for given in by_answer.values()] for question, by_answer in ratings.items()}


def _answer(given: list[tuple[float, str, Record]]) -> Answer:
    scores = [score for score, _text, _record in given]
    _score, text, record = given[0]
    return Answer(text, CORRECTION if CORRECTION in scores else sum(scores) / len(scores), record)
