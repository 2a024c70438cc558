"""Questions that the dataset does not ask, answered by the teacher: what a student learns from at sequence level (Kim & Rush 2016).

A dataset asks about each thing in a few phrasings. Here its own phrasings are used for the things which they were not used for: that costs no
labels, since the teacher answers, and it is the meaning of phrasings that a small student is slow to learn. What the evaluation asks is left out.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from workers.compression.spec import CompressSpec
from workers.engine import open_engine
from workers.moe import ChatTokenizer
from workers.training import Example, encode, read_records

MOST_QUESTIONS = 4000
ANSWER_TOKENS = 64
LEAST_TOGETHER = 5  # things that two phrasings must have been used for together, before one is taken to fit where the other does
SHORTEST_MENTION = 2
TAUGHT_FILE = "taught.jsonl"

Record = dict[str, Any]
Phrasing = tuple[str, str]  # what stands before and after the thing's name


def taught_by(spec: CompressSpec, tokenizer: ChatTokenizer, max_length: int) -> list[Example]:
    """The teacher's greedy answers as examples. Kept in the work folder, so that a job that is resumed learns from the same."""
    assert spec.dataset_folder is not None
    kept = spec.work_folder / TAUGHT_FILE
    if not kept.exists():
        asked = _asked(spec.dataset_folder, spec.seed)
        _write(kept, _answered(spec, asked))
    return encode(read_records(kept), tokenizer, max_length)[0]


def _asked(dataset: Path, seed: int) -> list[Record]:
    """Records without their answers: those that have none in the dataset, then things asked about in other phrasings."""
    records = list(read_records(dataset / "train.jsonl"))
    unwanted = {_key(record.get("question") or "") for name in ("train.jsonl", "eval.jsonl") for record in _read(dataset / name)}
    unlabelled = [{**record, "weight": 1.0} for record in records if record.get("question") and not record.get("answer") and not record.get("claim")]
    found = [record for record in rephrased(records) if _key(record["question"]) not in unwanted]
    order = np.random.default_rng(seed).permutation(len(found))
    return [*unlabelled, *(found[i] for i in order)][:MOST_QUESTIONS]


def _read(path: Path) -> Iterable[Record]:
    return read_records(path) if path.exists() else ()


def _key(question: str) -> str:
    return "".join(c for c in question.casefold() if c.isalnum())


def _answered(spec: CompressSpec, asked: Sequence[Record]) -> list[Record]:
    """Answers that do not end within their room are left out: the teacher does not know."""
    with closing(open_engine(spec.model_folder, threads=spec.threads)) as engine:
        prompts = [[{"role": "user", "content": record["question"]}] for record in asked]
        completions = [c for start in range(0, len(prompts), 64) for c in engine.generate_all(prompts[start : start + 64], max_tokens=ANSWER_TOKENS)]
    return [
        {**record, "answer": completion.text.strip()}
        for record, completion in zip(asked, completions, strict=True)
        if completion.text.strip() and completion.tokens < ANSWER_TOKENS
    ]


def _write(path: Path, records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    temporary.rename(path)


# -- phrasings


def rephrased(records: Iterable[Record]) -> list[Record]:
    """Each thing that the questions ask about, asked in the other phrasings that fit it. A thing: the questions of one `source`."""
    things: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.get("question") and record.get("source") and record.get("label") is None:
            things[str(record["source"])].append(record)
    known: list[tuple[Record, str, set[Phrasing]]] = []
    for asked in things.values():
        questions = [str(record["question"]) for record in asked]
        if len(questions) > 1 and (mention := mentioned(questions)):
            known.append((asked[0], _as_written(mention, questions), {p for q in questions if (p := _around(q, mention))}))
    together = Counter(pair for _, _, phrasings in known for pair in combinations(sorted(phrasings), 2))

    def fit(one: Phrasing, other: Phrasing) -> bool:
        return together[min(one, other), max(one, other)] >= LEAST_TOGETHER

    usual = sorted({p for pair, count in together.items() if count >= LEAST_TOGETHER for p in pair})
    return [
        {"question": _put(mention, phrasing), "domain": record.get("domain"), "lang": record.get("lang"), "weight": record.get("weight", 1.0)}
        for record, mention, phrasings in known
        for phrasing in usual
        if phrasing not in phrasings and all(fit(phrasing, own) for own in phrasings if own in usual) and any(own in usual for own in phrasings)
    ]


def mentioned(questions: Sequence[str]) -> str:
    """The longest text that all questions hold, whatever its case, cut to whole words; empty where there is none."""
    first, *others = sorted((q.casefold() for q in questions), key=len)
    for length in range(len(first), SHORTEST_MENTION - 1, -1):
        for start in range(len(first) - length + 1):
            part = first[start : start + length]
            if all(part in other for other in others):
                mention = _whole_words(part, first, start)
                return mention if len(mention) >= SHORTEST_MENTION and all(_stands_alone(mention, question) for question in others) else ""
    return ""


def _stands_alone(mention: str, question: str) -> bool:
    before, _, after = question.partition(mention)
    cut = (before and mention[0].isascii() and before[-1].isalnum()) or (after and mention[-1].isascii() and after[0].isalnum())
    return not cut


def _whole_words(part: str, question: str, start: int) -> str:
    """A word that is cut is left out; Chinese is written without spaces, and is not cut."""
    end = start + len(part)
    if start and part[0].isascii() and part[0].isalnum() and question[start - 1].isalnum():
        part = part[len(part.split(" ", 1)[0]) :]
    if end < len(question) and part and part[-1].isascii() and part[-1].isalnum() and question[end].isalnum():
        part = part[: len(part) - len(part.rsplit(" ", 1)[-1])]
    return part.strip(" ?？。.!,，：:")


def _as_written(mention: str, questions: Sequence[str]) -> str:
    """The mention in the case that it has within a sentence."""
    found = [q[at : at + len(mention)] for q in questions if (at := q.casefold().find(mention)) >= 0]
    within = [text for text, q in zip(found, questions, strict=False) if not q.casefold().startswith(mention)]
    return (within or found)[0]


def _around(question: str, mention: str) -> Phrasing | None:
    at = question.casefold().find(mention)
    return None if at < 0 else (question[:at], question[at + len(mention) :])


def _put(mention: str, phrasing: Phrasing) -> str:
    question = f"{phrasing[0]}{mention}{phrasing[1]}"
    return question if phrasing[0] else question[:1].upper() + question[1:]
