"""Cleaning with regular expressions: every row is kept, repaired or dropped with its reason."""

import re
from dataclasses import replace
from typing import Any

from workers.corpus.advancing import Advance, advancing, unheard
from workers.corpus.languages import language_of
from workers.corpus.records import CLEANED, DOCUMENT, Record
from workers.corpus.repair import repair
from workers.corpus.rules import SENTENCE_RULES, TEXT_RULES, is_contact_spam, is_garbled, is_remnant, is_too_short, may_hold_foreign_sentence

_TEXT_FIELDS = ("text", "title", "question", "answer", "correction")
# A document of which more than this is advertisement or boilerplate is dropped; of less, those sentences are cut out.
MAX_CUT_SHARE = 0.4
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?](?!\s|$)[^.!?。！？\n]*)*[.!?。！？]*[\"'”’)）」]*\s*|\n+|[.!?。！？]+\s*")


def clean(records: list[Record], advance: Advance = unheard) -> list[Record]:
    return [clean_record(record) if record.kept else record for record in advancing(records, advance)]


def clean_record(record: Record) -> Record:
    """Documents meet every rule. What people wrote by hand (entries, questions, claims, ratings) is repaired, and dropped only if garbled."""
    repaired: dict[str, Any] = {name: repair(value) for name in _TEXT_FIELDS if (value := getattr(record, name)) is not None}
    main = "text" if record.text is not None else "question"
    before = getattr(record, main)
    cleaned = replace(record, **repaired)
    cleaned = replace(cleaned, lang=record.lang or language_of(cleaned.content))
    reason = None
    if record.kind == DOCUMENT:
        kept, reason = _clean_document(cleaned.text or "", cleaned.lang or "und")
        cleaned = replace(cleaned, text=kept)
    elif not all(repaired.values()):
        reason = "missing_fields"
    elif any(is_garbled(value) for name, value in repaired.items() if name != "title"):
        reason = "garbled_text"
    if getattr(cleaned, main) != before:
        cleaned = replace(cleaned, original=before)
    return cleaned.dropped(CLEANED, reason) if reason else cleaned


def _clean_document(text: str, lang: str) -> tuple[str, str | None]:
    """The text without its foreign sentences, and the reason to drop it, if there is one."""
    for rule in TEXT_RULES:
        if rule.applies(text):
            return text, rule.reason
    kept, cut = _cut_sentences(text)
    if cut:
        reason = max(cut, key=lambda name: cut[name])
        if sum(cut.values()) > MAX_CUT_SHARE * len(text) or is_remnant(kept):
            return text, reason
    if is_contact_spam(kept):
        return text, "contact_spam"
    if is_too_short(kept, lang):
        return text, "too_short"
    return kept, None


def _cut_sentences(text: str) -> tuple[str, dict[str, int]]:
    if not may_hold_foreign_sentence(text):
        return text, {}
    kept: list[str] = []
    cut: dict[str, int] = {}
    for sentence in _SENTENCE.findall(text):
        reason = next((rule.reason for rule in SENTENCE_RULES if rule.applies(sentence)), None)
        if reason is None:
            kept.append(sentence)
        else:
            cut[reason] = cut.get(reason, 0) + len(sentence)
    return ("".join(kept).strip() if cut else text), cut
