"""What a row is: its kind, told by its fields, and what is known about it. Values; the steps of the pipeline make new ones."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workers.moe import BadPicture, check_picture

DOCUMENT, ENTRY, QUESTION, CLAIM, RATING = "document", "entry", "question", "claim", "rating"
# The required fields tell the kind. The order matters: a rating has a question's fields too, an entry a document's.
REQUIRED: dict[str, tuple[str, ...]] = {
    RATING: ("question", "answer", "rating"),
    QUESTION: ("question", "answer"),
    CLAIM: ("claim", "label"),
    ENTRY: ("title", "text"),
    DOCUMENT: ("text",),
}
OPTIONAL = ("domain", "lang", "id", "source", "split", "entry", "correction", "reason", "image")
KNOWN_FIELDS = tuple(dict.fromkeys(name for names in REQUIRED.values() for name in names)) + OPTIONAL

RAW, CLEANED, DEDUPLICATED, CLASSIFIED, AUGMENTED, NEGATIVES, USED = STAGES = (
    "raw", "cleaned", "deduplicated", "classified", "augmented", "negatives", "used",
)  # fmt: skip

TRUE_WORDS, FALSE_WORDS = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


class BadRow(ValueError):
    """One row cannot be used. `reason` is the word the report counts it under."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Record:
    """One row, kept or dropped. `text` is a document's text, an entry's statement or a claim; after cleaning, cleaned."""

    row: int  # position in the input; made rows are numbered on from there
    id: str
    kind: str
    text: str | None = None
    title: str | None = None
    question: str | None = None
    answer: str | None = None
    label: bool | None = None  # of a claim: true or false
    rating: int | None = None
    correction: str | None = None
    image: str | None = None  # that a question or a rating is about: a PNG or JPEG, as a data URL or plain base64
    domain: str | None = None
    lang: str | None = None
    source: str | None = None  # id of the entry it was made from
    split: str | None = None  # train or eval
    stage: str = USED  # the stage that dropped it
    reason: str | None = None  # why it was dropped
    original: str | None = None  # before cleaning, where that changed it
    cluster: int | None = None  # of near-duplicates
    variant: str | None = None  # the phrasing or the kind of negative that made it
    weight: float = 1.0

    @property
    def kept(self) -> bool:
        return self.reason is None

    @property
    def content(self) -> str:
        """All its words, for telling language and domain."""
        return " ".join(part for part in (self.title, self.text, self.question, self.answer) if part)

    def dropped(self, stage: str, reason: str, cluster: int | None = None) -> "Record":
        return replace(self, stage=stage, reason=reason, cluster=self.cluster if cluster is None else cluster)


def kind_of(fields: Mapping[str, Any]) -> str | None:
    """The first kind all of whose required fields are there and not empty."""
    return next((kind for kind, names in REQUIRED.items() if all(fields.get(name) not in (None, "") for name in names)), None)


def parse(row: int, fields: Mapping[str, Any]) -> Record:
    """Read one row. Raises BadRow: `missing_fields` when no kind fits, `invalid_value` when a field holds what it cannot,
    `bad_image` or `image_too_large` when its picture cannot be used."""
    kind = kind_of(fields)
    if kind is None:
        raise BadRow("missing_fields")
    texts = {name: _text(fields.get(name)) for name in ("text", "title", "question", "answer", "correction")}
    if kind == CLAIM:
        texts["text"] = _text(fields["claim"])
    if any(value is not None and not value.strip() for name, value in texts.items() if name in REQUIRED[kind] or name == "text"):
        raise BadRow("missing_fields")
    own = {"text": (DOCUMENT, ENTRY, CLAIM), "title": (ENTRY,), "question": (QUESTION, RATING), "answer": (QUESTION, RATING), "correction": (RATING,)}
    kept: dict[str, Any] = {name: value for name, value in texts.items() if kind in own[name] and value and value.strip()}
    domain = _text(fields.get("domain"))
    return Record(
        row=row, id=_text(fields.get("id")) or f"r{row}", kind=kind, **kept,
        label=_label(fields["label"]) if kind == CLAIM else None,
        rating=_rating(fields["rating"]) if kind == RATING else None,
        domain=domain.strip().lower() or None if domain else None,
        lang=_text(fields.get("lang")) or None,
        source=_text(fields.get("entry") or fields.get("source")),
        split=_split(fields.get("split")), image=_image(fields.get("image")) if kind in (QUESTION, RATING) else None,
    )  # fmt: skip


def _image(value: Any) -> str | None:
    if value in (None, ""):
        return None
    if not isinstance(value, str):
        raise BadRow("bad_image")
    try:
        check_picture(value)
    except BadPicture as bad:
        raise BadRow(bad.reason) from None
    return value


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow("invalid_value")


def _label(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return word in TRUE_WORDS
    raise BadRow("invalid_value")


def _rating(value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow("invalid_value") from None
    if isinstance(value, bool) or number not in (1, 2, 3, 4, 5):
        raise BadRow("invalid_value")
    return int(number)


def _split(value: Any) -> str | None:
    return value if value in ("train", "eval") else None


def normalised(text: str) -> str:
    """The same for texts that differ only in case, width, spaces or punctuation. Digits, signs and symbols of units stay."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_PLAIN).replace(". ", " ").split()).strip(". ")


class _Plain(dict[int, str]):
    """Every code point's own replacement, worked out when first met: ten times quicker than asking for each character."""

    def __missing__(self, point: int) -> str:
        character = chr(point)
        self[point] = " " if unicodedata.category(character)[0] in "PZC" and character not in "-+%°./" else character
        return self[point]


_PLAIN = _Plain()
