"""A document that opens by saying what its subject is, is asked about like a knowledge entry.

A data set of documents alone has nothing to be examined on; where its texts define something ("gedit is a text editor …"),
that can be asked. Only the first sentence counts, and only one definition of each subject.
"""

import re
from collections.abc import Iterable

from workers.corpus.records import DOCUMENT, ENTRY, Record, normalised

LONGEST_SUBJECT_WORDS = 5
LONGEST_DEFINITION = 240
SHORTEST_PREDICATE_WORDS = 4
_ENGLISH = re.compile(r"(?:The |An? )?([A-Za-z][\w'’+.&/-]*(?: [\w'’+.&/-]+){0,4}?),? (?:is|are|was|were) (?:an?|the|one of) ")
_CHINESE = re.compile(r"([\u3400-\u9fffA-Za-z0-9·]{2,12})是(?:一[种个门类项座部条]|指|由|中国|世界|[^，。；]{2,30}的)")
_FIRST_SENTENCE = {"en": re.compile(r".+?[.!?](?=\s|$)"), "zh": re.compile(r".+?[。！？]")}
# What points at something said elsewhere, and what is said of everything.
_POINTING = re.compile(
    r"\b(?:this|that|these|those|it|its|he|she|they|we|you|i|here|there|what|which|who|such|another|each|every|some|most|many|one|other|package|file|example|following|above|"
    r"below|library|program|tool|module|plugin|goal|aim|purpose|idea|result|reason|name|and|if|when|because|but|so|as|also|note|for|in|of|on|to|with)\b",
    re.IGNORECASE,
)
_ZH_POINTING = re.compile(r"^[这那它他她我你该此本其]|^(?:但|而|因为|所以|如果|虽然|有|每|许多|一些|以下|下面|目的|结果|原因|主要)")


def entries_in(records: Iterable[Record]) -> list[Record]:
    """One entry for each subject that a kept document defines in its first sentence, named by the document's id.

    The entries are not rows of the data set: their questions point at the document they were made from.
    """
    found: dict[str, Record] = {}
    for record in records:
        if not record.kept or record.kind != DOCUMENT:
            continue
        title, statement = definition_in(record.text or "", record.lang or "en")
        if title and normalised(title) not in found:
            found[normalised(title)] = Record(
                row=record.row, id=record.id, kind=ENTRY, title=title, text=statement, domain=record.domain, lang=record.lang, cluster=record.cluster
            )
    return list(found.values())


def definition_in(text: str, lang: str) -> tuple[str, str] | tuple[None, None]:
    """The subject and the sentence that defines it, where `text` opens so."""
    sentence = _FIRST_SENTENCE.get(lang, _FIRST_SENTENCE["en"]).match(" ".join(text[: 2 * LONGEST_DEFINITION].split()))
    if not sentence or len(sentence[0]) * (2 if lang == "zh" else 1) > LONGEST_DEFINITION:
        return None, None
    said = sentence[0].strip()
    match = (_CHINESE if lang == "zh" else _ENGLISH).match(said)
    if not match or (_ZH_POINTING if lang == "zh" else _POINTING).search(match[1]):
        return None, None
    if lang != "zh" and len(said[match.end() :].split()) < SHORTEST_PREDICATE_WORDS:
        return None, None
    return match[1], said
