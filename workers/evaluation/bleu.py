"""Corpus BLEU by sacrebleu, Chinese rows tokenised by characters, with a bootstrap interval.

BLEU moves by points with its settings alone: they are frozen here and named by `SIGNATURE`, which goes with every figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sacrebleu import __version__ as sacrebleu_version
from sacrebleu.metrics import BLEU

ORDER = 4
TOKENIZERS = {"zh": "zh"}
TOKENIZER_ELSE = "13a"
RESAMPLES = 1000
CONFIDENCE = 0.95
SIGNATURE = f"nrefs:1|case:mixed|eff:no|tok:13a(zh rows: zh)|smooth:exp|version:{sacrebleu_version}"

# Per answer: length of the answer, length of the reference, matches of orders 1–4, n-grams of orders 1–4.
Statistics = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    score: float
    low: float
    high: float


@lru_cache(maxsize=4)
def _metric(tokenizer: str, effective_order: bool) -> BLEU:
    return BLEU(tokenize=tokenizer, lowercase=False, smooth_method="exp", max_ngram_order=ORDER, effective_order=effective_order)


def _tokenizer(lang: str | None) -> str:
    return TOKENIZERS.get(lang or "", TOKENIZER_ELSE)


def statistics(answers: Sequence[str], references: Sequence[str], langs: Sequence[str | None]) -> Statistics:
    """(answers, 10): sufficient statistics, additive over answers, whatever their tokenizer."""
    rows = np.zeros((len(answers), 2 + 2 * ORDER), np.int64)
    for row, answer, reference, lang in zip(rows, answers, references, langs, strict=True):
        scored = _metric(_tokenizer(lang), False).corpus_score([answer], [[reference]])
        row[:] = [scored.sys_len, scored.ref_len, *scored.counts, *scored.totals]
    return rows


def corpus_bleu(stats: Statistics) -> float:
    """BLEU, 0–100, of the pooled statistics."""
    return _of_sums(stats.sum(axis=0)) if len(stats) else 0.0


def _of_sums(sums: NDArray[np.int64]) -> float:
    answered, expected, *counts = (int(n) for n in sums)
    return BLEU.compute_bleu(counts[:ORDER], counts[ORDER:], answered, expected, smooth_method="exp", max_ngram_order=ORDER).score


def bootstrap(stats: Statistics, seed: int) -> Interval:
    """BLEU with its 95 % interval from 1,000 resamples of the rows (Koehn 2004)."""
    score = corpus_bleu(stats)
    if len(stats) < 2:
        return Interval(score, score, score)
    times_drawn = np.random.default_rng(seed).multinomial(len(stats), np.full(len(stats), 1 / len(stats)), size=RESAMPLES)
    scores = [_of_sums(sums) for sums in times_drawn @ stats]
    low, high = np.quantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # Resampling is about the sample: with few rows it may leave the score itself outside.
    return Interval(score, min(float(low), score), max(float(high), score))


def sentence_bleu(answer: str, reference: str, lang: str | None) -> float:
    """BLEU of one answer, for looking at single rows; orders longer than the answer do not count."""
    return _metric(_tokenizer(lang), True).sentence_score(answer, [reference]).score
