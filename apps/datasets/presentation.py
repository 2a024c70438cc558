"""A processing report in words and bars."""

import difflib
import re
from dataclasses import dataclass, field

from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

STAGES = {
    "raw": _("uploaded"),
    "cleaned": _("cleaned"),
    "deduplicated": _("without duplicates"),
    "classified": _("with a domain"),
    "augmented": _("with questions made"),
    "negatives": _("with false claims"),
    "used": _("used"),
}
REASONS = {
    "unreadable": _("cannot be read"),
    "missing_fields": _("fields are missing"),
    "invalid_value": _("a value is not allowed"),
    "advertisement": _("advertisement"),
    "boilerplate": _("page boilerplate"),
    "garbled_text": _("garbled text"),
    "bad_image": _("picture cannot be read"),
    "image_too_large": _("picture too large"),
    "html_leftovers": _("left-over code"),
    "repeated_characters": _("repeated characters"),
    "contact_spam": _("mostly contacts"),
    "too_short": _("too short"),
    "low_rating": _("rated too low"),
    "corrected": _("corrected by somebody else"),
    "exact_duplicate": _("exact copy"),
    "near_duplicate": _("nearly a copy"),
    "held_out": _("asked in the held-out set"),
}
KINDS = {
    "document": _("document"),
    "entry": _("knowledge entry"),
    "question": _("question"),
    "claim": _("claim"),
    "rating": _("rating"),
    "unreadable": _("unreadable"),
}
VARIANTS = {"wrong_fact": _("another's fact"), "wrong_number": _("wrong number"), "broken_logic": _("broken logic"), "casual": _("as people type")}
LANGUAGES = {"en": _("English"), "zh": _("Chinese")}
MAX_TOKENS = 700  # difflib is quadratic; what is longer is shown from its beginning
_TOKEN = re.compile(r"\w+|\s+|.", re.UNICODE)
_HAN = re.compile(r"[\u4e00-\u9fff]")


def label(words: dict, name: str | None) -> str:
    return str(words.get(name, (name or "").replace("_", " ")))


@dataclass(frozen=True)
class Drop:
    reason: str
    label: str
    rows: int


@dataclass(frozen=True)
class Bar:
    """One stage of the funnel: rows left, their share of the largest stage, and what changed against the stage before."""

    stage: str
    label: str
    rows: int
    share: float
    dropped: list[Drop] = field(default_factory=list)
    added: int = 0


def funnel(report: dict, drops: dict[str, dict[str, int]]) -> list[Bar]:
    """The bars from raw to used. Rows that a stage made (questions, claims) are told apart from those it dropped."""
    stages = report.get("funnel", [])
    largest = max((stage["rows"] for stage in stages), default=0) or 1
    bars, before = [], None
    for stage in stages:
        name = stage["stage"]
        gone = [Drop(reason, label(REASONS, reason), rows) for reason, rows in drops.get(name, {}).items()]
        if before is None:
            added = 0
        else:  # what cannot be read is in the file, so it is counted in `raw` and gone with the first stage
            gone = [Drop(r, label(REASONS, r), n) for r, n in drops.get("raw", {}).items()] + gone if len(bars) == 1 else gone
            added = max(0, stage["rows"] - before + sum(drop.rows for drop in gone))
        bars.append(Bar(name, capfirst(label(STAGES, name)), stage["rows"], stage["rows"] / largest, gone if bars else [], added))
        before = stage["rows"]
    return bars


@dataclass(frozen=True)
class Share:
    name: str
    label: str
    rows: int
    share: float


def shares(counted: dict[str, int], words: dict | None = None) -> list[Share]:
    """Counts as bars, most first; `share` is of the largest."""
    largest = max(counted.values(), default=0) or 1
    ordered = sorted(counted.items(), key=lambda item: -item[1])
    return [Share(name, label(words or {}, name), rows, rows / largest) for name, rows in ordered]


@dataclass(frozen=True)
class Piece:
    """A run of text: in both, removed by cleaning (`cut`), or new in the cleaned text (`new`)."""

    text: str
    cut: bool = False
    new: bool = False


def marked(before: str, after: str) -> tuple[list[Piece], bool]:
    """The text before cleaning with what was removed marked; and whether only its beginning is shown."""
    old, new = _tokens(before), _tokens(after)
    long = len(old) > MAX_TOKENS or len(new) > MAX_TOKENS
    old, new = old[:MAX_TOKENS], new[:MAX_TOKENS]
    pieces: list[Piece] = []
    for operation, i, j, m, n in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if operation == "equal":
            pieces.append(Piece("".join(old[i:j])))
            continue
        gone, came = "".join(old[i:j]), "".join(new[m:n])
        if not (gone + came).strip():  # spaces moved: nothing a person would call removed
            pieces.append(Piece(came))
            continue
        if gone:
            pieces.append(Piece(gone, cut=True))
        if came:
            pieces.append(Piece(came, new=True))
    return pieces, long


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    for token in _TOKEN.findall(text):
        found.extend(token) if _HAN.search(token) else found.append(token)
    return found
