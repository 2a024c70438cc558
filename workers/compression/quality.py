"""How good a folder's answers are: BLEU on held-out questions, and how long an answer takes. The same questions for parent and child."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from workers.compression.spec import CompressSpec
from workers.compression.telling import tell
from workers.engine import open_engine
from workers.evaluation.bleu import corpus_bleu, statistics
from workers.evaluation.evaluate import ask, figures
from workers.evaluation.questions import QUESTION, HeldOut, read_held_out, sample
from workers.protocol import JobError

ANSWER_TOKENS = 64
WATCHED = 200
TIMED_ALONE = 100  # answers timed one after the other, for the percentiles


def held_out(spec: CompressSpec) -> list[HeldOut]:
    """At most `spec.max_questions` of the dataset's held-out questions. JobError where there are none."""
    if spec.dataset_folder is None:
        raise JobError("The policy compares answers with held-out ones, and this model was not trained here. Choose a method yourself.")
    rows = [row for row in _asked(spec) if row.kind == QUESTION]
    if not rows:
        raise JobError("The dataset holds no held-out question, so that quality cannot be measured. Process one with questions or knowledge entries.")
    return rows


def _asked(spec: CompressSpec) -> list[HeldOut]:
    return sample(_all_held_out(spec), spec.max_questions, spec.seed)


def _all_held_out(spec: CompressSpec) -> list[HeldOut]:
    assert spec.dataset_folder is not None
    try:
        return read_held_out(spec.dataset_folder / "eval.jsonl")
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"The dataset's held-out questions cannot be read ({error}). Process it again.") from error


def watched(spec: CompressSpec) -> list[HeldOut]:
    """At most WATCHED of the dataset's held-out questions that `held_out` leaves over: by these a model that learns may be judged meanwhile."""
    asked = set(_asked(spec))
    left = [row for row in _all_held_out(spec) if row.kind == QUESTION and row not in asked]
    return sample(left, WATCHED, spec.seed)


def held_out_if_any(spec: CompressSpec) -> list[HeldOut]:
    """The same; none where the model was not trained here, or its dataset holds no questions."""
    try:
        return held_out(spec)
    except JobError:
        return []


def bleu_of(folder: Path, rows: Sequence[HeldOut], spec: CompressSpec) -> float:
    with closing(open_engine(folder, threads=spec.threads)) as engine:
        answers = ask(engine, list(rows), ANSWER_TOKENS, time.monotonic, lambda done, seconds: None).answers
    return corpus_bleu(statistics(answers, [row.reference for row in rows], [row.lang for row in rows]))


def evaluate(folder: Path, rows: Sequence[HeldOut], spec: CompressSpec) -> dict[str, Any]:
    """BLEU with its 95 % interval, tokens a second of all questions together, and milliseconds of answers given one at a time."""

    def report(done: int, seconds: float) -> None:
        tell(done / len(rows), f"{done} of {len(rows)} held-out questions answered", seconds / done * (len(rows) - done))

    tell(0.0, "Answering held-out questions")
    with closing(open_engine(folder, threads=spec.threads)) as engine:
        found = figures(list(rows), ask(engine, list(rows), ANSWER_TOKENS, time.monotonic, report), spec.seed)
        alone = ask_alone(engine, rows[:TIMED_ALONE])
    told = {name: found[name] for name in ("bleu", "bleu_low", "bleu_high", "questions", "tokens_per_second")}
    return told | {"p50_ms": float(np.percentile(alone, 50)), "p99_ms": float(np.percentile(alone, 99))}


def ask_alone(engine: Any, rows: Sequence[HeldOut]) -> list[float]:
    """Milliseconds of the processor's time for each answer: the clock would measure what else the machine does."""
    took = []
    for row in rows:
        began = time.process_time()
        engine.generate_all([[{"role": "user", "content": row.question}]], max_tokens=ANSWER_TOKENS)
        took.append(1000 * (time.process_time() - began))
    return took
