"""Ask a model the held-out questions and put its answers into figures."""

import statistics as stats
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.corpus import is_refusal
from workers.evaluation.bleu import SIGNATURE, bootstrap, corpus_bleu, sentence_bleu, statistics
from workers.evaluation.questions import CLAIM, QUESTION, HeldOut, most_frequent_answer
from workers.evaluation.refusal import count_refusals
from workers.moe import asking

ROUND_PROMPTS = 64  # prompts given to the engine at once: enough to fill its batch, few enough for progress to move


class Answered(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class Answers(Protocol):
    def generate_all(self, prompts: list[list[dict[str, str]]], max_tokens: int, temperature: float = 0.0) -> Sequence[Answered]: ...


@dataclass(frozen=True)
class Asked:
    """What the model said. `wall_seconds` is the time for all of it."""

    answers: list[str]
    tokens: int
    seconds: list[float]  # each answer's own
    wall_seconds: float


def ask(engine: Answers, rows: list[HeldOut], max_tokens: int, clock: Callable[[], float], progress: Callable[[int, float], None]) -> Asked:
    """Greedy answers, in the order of `rows`. `progress` hears how many are answered and after how many seconds."""
    completions: list[Answered] = []
    began = clock()
    for start in range(0, len(rows), ROUND_PROMPTS):
        prompts = [[asking(row.question, row.image)] for row in rows[start : start + ROUND_PROMPTS]]
        completions += engine.generate_all(prompts, max_tokens=max_tokens, temperature=0.0)
        progress(len(completions), clock() - began)
    return Asked([c.text for c in completions], sum(c.tokens for c in completions), [c.seconds for c in completions], clock() - began)


def figures(rows: list[HeldOut], asked: Asked, seed: int) -> dict[str, Any]:
    """The result of an evaluation. `rows` must hold at least one question."""
    pairs = list(zip(rows, asked.answers, strict=True))
    questions = [(row, answer) for row, answer in pairs if row.kind == QUESTION]
    interval = bootstrap(_statistics(questions), seed)
    trivial = most_frequent_answer([row for row, _ in questions])
    refusals = count_refusals((bool(row.label), is_refusal(answer, row.lang, row.question)) for row, answer in pairs if row.kind == CLAIM)
    return {
        "bleu": interval.score, "bleu_low": interval.low, "bleu_high": interval.high, "signature": SIGNATURE,
        "baseline_bleu": corpus_bleu(_statistics([(row, trivial) for row, _ in questions])), "baseline_answer": trivial,
        "refusal_rate": refusals.refusal_rate, "false_alarm_rate": refusals.false_alarm_rate,
        "questions": len(questions), "claims": refusals.claims, "per_domain": _per_domain(questions),
        "exact_match": sum(answer.strip() == row.reference.strip() for row, answer in questions) / len(questions),
        "tokens_per_second": asked.tokens / asked.wall_seconds if asked.wall_seconds else 0.0,
        "latency_ms": 1000 * stats.median(asked.seconds),
    }  # fmt: skip


def _statistics(answered: list[tuple[HeldOut, str]]):
    return statistics([answer for _, answer in answered], [row.reference for row, _ in answered], [row.lang for row, _ in answered])


def _per_domain(questions: list[tuple[HeldOut, str]]) -> dict[str, dict[str, float | int]]:
    groups: dict[str, list[tuple[HeldOut, str]]] = defaultdict(list)
    for row, answer in questions:
        groups[row.domain or "general"].append((row, answer))
    return {domain: {"bleu": corpus_bleu(_statistics(group)), "questions": len(group)} for domain, group in sorted(groups.items())}


def answer_rows(rows: list[HeldOut], asked: Asked) -> list[dict[str, Any]]:
    """One row an answer, for people who want to see what is behind the figures."""
    return [
        {
            "question": row.question, "reference": row.reference, "answer": answer, "lang": row.lang, "domain": row.domain, "kind": row.kind,
            "bleu": sentence_bleu(answer, row.reference, row.lang),
            **({"label": row.label, "refused": is_refusal(answer, row.lang, row.question)} if row.kind == CLAIM else {}),
        }
        for row, answer in zip(rows, asked.answers, strict=True)
    ]  # fmt: skip
