"""The records of a processed dataset as token sequences with a mask of what is to be learnt."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from workers.moe import BadPicture, ModelConfig, NoPictures, pixels_of
from workers.moe.tokenizer import ChatTokenizer
from workers.protocol import JobError

TRAIN_FILE = "train.jsonl"
EVAL_FILE = "eval.jsonl"

# Where a claim comes without the question that a chat would put it in.
_CLAIM_FORMS = {
    "en": ("Is it true that {claim}?", "Yes, that is true.", "No, that is false."),
    "zh": ("“{claim}”这句话对吗？", "对，这是真的。", "不对，这是假的。"),
}


NOWHERE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Example:
    """One training sequence. `ids`: (length,) int32; `learnt`: (length,) bool, the tokens whose prediction is the loss.

    `images`: (size, size, 3) uint8 each, in the order of the tokens that hold their places; `image_at`: (patches of all,) int64, where
    those tokens are.
    """

    ids: np.ndarray
    learnt: np.ndarray
    domain: str
    weight: float
    is_question: bool = True  # else a document, or a piece of one
    turns: tuple[tuple[str, int], ...] = ()  # of a conversation: each turn's domain and its number of tokens
    images: tuple[np.ndarray, ...] = ()
    image_at: np.ndarray = field(default_factory=lambda: NOWHERE)
    kind: str = ""  # of the record: question, claim or document

    def followed_by(self, other: "Example") -> "Example":
        """One conversation of both."""
        return replace(
            self, ids=np.concatenate([self.ids, other.ids]), learnt=np.concatenate([self.learnt, other.learnt]), turns=self.domains + other.domains,
            images=self.images + other.images, image_at=np.concatenate([self.image_at, other.image_at + len(self)]),
        )  # fmt: skip

    @property
    def domains(self) -> tuple[tuple[str, int], ...]:
        """Of which domain each stretch of tokens is."""
        return self.turns or ((self.domain, len(self)),)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learnt_count(self) -> int:
        return int(self.learnt.sum())


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line. JobError where a line is none, or the file is missing."""
    if not path.exists():
        raise JobError(f"The dataset has no {path.name}: process it before training on it.")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise JobError(f"Line {number} of {path.name} is not JSON ({error}). Process the dataset again.") from error
            if isinstance(record, dict):
                yield record


def as_question(record: dict[str, Any]) -> tuple[str, str] | None:
    """A record as a question and its answer; None for plain text."""
    if record.get("question") and record.get("answer"):
        return record["question"], record["answer"]
    if record.get("claim") and record.get("label") is not None:
        wrapped, yes, no = _CLAIM_FORMS["zh" if record.get("lang") == "zh" else "en"]
        claim = record["claim"].strip().rstrip(".。")
        return wrapped.format(claim=claim), yes if record["label"] else no
    return None


def texts_of(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """All text that a tokenizer should know."""
    for record in records:
        pair = as_question(record)
        if pair:
            yield from pair
        elif record.get("text"):
            yield record["text"]


def encode(
    records: Iterable[dict[str, Any]], tokenizer: ChatTokenizer, max_length: int, config: ModelConfig | None = None
) -> tuple[list[Example], int]:
    """The examples, and the number of records that have none: no text, a question too long to leave room for its answer, or one about
    a picture that cannot be seen (`config`, where one is given, says in which size pictures are).

    A question teaches its answer only. A document teaches all of itself, in pieces of at most `max_length` tokens.
    """
    examples: list[Example] = []
    seen: dict[str, np.ndarray] = {}  # several questions are asked about one picture
    without = 0
    for record in records:
        if record.get("image"):
            example = _about_picture(record, tokenizer, max_length, config, seen)
            examples += [example] if example else []
            without += example is None
            continue
        pair, text = as_question(record), record.get("text")
        domain, weight = _domain(record), _weight(record)
        if pair:
            ids, learnt = tokenizer.encode_example(*pair)
            pieces = [(ids, learnt)] if len(ids) <= max_length else []
        elif text and text.strip():
            ids, learnt = tokenizer.encode_document(text)
            # Pieces overlap by the one token from which the next piece's first is predicted.
            pieces = [(ids[a : a + max_length], [False, *learnt[a + 1 : a + max_length]]) for a in range(0, len(ids) - 1, max_length - 1)]
        else:
            pieces = []
        without += not pieces
        kind = str(record.get("kind") or ("document" if pair is None else "question" if record.get("label") is None else "claim"))
        examples += [Example(np.array(i, np.int32), np.array(m, bool), domain, weight, bool(pair), kind=kind) for i, m in pieces]
    return examples, without


def _about_picture(
    record: dict[str, Any], tokenizer: ChatTokenizer, max_length: int, config: ModelConfig | None, seen: dict[str, np.ndarray]
) -> Example | None:
    pair, image = as_question(record), str(record["image"])
    if pair is None or config is None:
        return None
    try:
        ids, learnt = tokenizer.encode_example(*pair, image, config.image_patches)
        if image not in seen:
            seen[image] = pixels_of(image, config.image_size)
    except (NoPictures, BadPicture):
        return None
    if len(ids) > max_length:
        return None
    numbers = np.array(ids, np.int32)
    return Example(
        numbers,
        np.array(learnt, bool),
        _domain(record),
        _weight(record),
        images=(seen[image],),
        image_at=np.flatnonzero(numbers == tokenizer.image_id),
        kind=str(record.get("kind") or "question"),
    )


def _domain(record: dict[str, Any]) -> str:
    return str(record.get("domain") or "")


def _weight(record: dict[str, Any]) -> float:
    return float(1.0 if record.get("weight") is None else record["weight"])
