"""The phrasings in which an entry's title is asked about, in two languages, and the check that a pair is well-formed.

Templates, not a model: each is grammatical for its kind of subject, whatever the title.
"""

import random
import re
from dataclasses import dataclass

from workers.corpus.subjects import ASKED, CLAUSE, CONCEPT, NAME, PERSON, Subject


@dataclass(frozen=True)
class Templates:
    """`first` is what people ask most and is always trained on; `held_out` are asked in the evaluation."""

    first: str
    others: tuple[str, ...]
    held_out: tuple[str, ...]


_ENGLISH: dict[str, Templates] = {
    CONCEPT: Templates(
        "What {verb} {mention}?",
        ("Explain {mention}.", "Tell me about {mention}.", "Describe {mention}.", "How would you define {mention}?"),
        ("What do you know about {mention}?", "Can you explain what {mention} {verb}?"),
    ),
    NAME: Templates(
        "What {verb} {mention}?",
        ("Tell me about {mention}.", "Describe {mention}.", "Give a short description of {mention}."),
        ("What do you know about {mention}?", "Can you explain what {mention} {verb}?"),
    ),
    PERSON: Templates(
        "Who {verb} {mention}?",
        ("Tell me about {mention}.", "Describe {mention}.", "Give a short description of {mention}."),
        ("What do you know about {mention}?", "Can you tell me who {mention} {verb}?"),
    ),
    CLAUSE: Templates(
        "Can you explain {mention}?",
        ("Explain {mention}.", "Tell me {mention}.", "Describe {mention}."),
        ("Do you know {mention}?", "Could you say {mention}?"),
    ),
    ASKED: Templates(
        "{mention}?",
        ("Please answer this question: {mention}?", "I have a question: {mention}?", "Tell me: {mention}?"),
        ("Can you answer this: {mention}?", "Do you know this: {mention}?"),
    ),
}
_CHINESE: dict[str, Templates] = {
    CONCEPT: Templates(
        "什么是{mention}？", ("{mention}是什么？", "请解释{mention}。", "请介绍一下{mention}。"), ("能讲讲{mention}吗？", "{mention}指的是什么？")
    ),
    PERSON: Templates(
        "{mention}是谁？", ("请介绍一下{mention}。", "请说说{mention}。", "谁是{mention}？"), ("能讲讲{mention}吗？", "你了解{mention}吗？")
    ),
    ASKED: Templates(
        "{mention}？", ("请问，{mention}？", "请回答：{mention}？", "我想知道：{mention}？"), ("能告诉我吗：{mention}？", "你知道吗：{mention}？")
    ),
}


@dataclass(frozen=True)
class Phrasing:
    """One question and the name of the template that made it."""

    variant: str
    question: str


def templates_for(subject: Subject) -> Templates:
    return (_CHINESE if subject.lang == "zh" else _ENGLISH)[subject.kind]


def ask(subject: Subject, template: str) -> Phrasing:
    question = template.format(mention=subject.mention, verb=subject.verb)
    return Phrasing(template, question[:1].upper() + question[1:] if template.startswith("{mention}") and subject.lang != "zh" else question)


def trained(subject: Subject, rng: random.Random, how_many: int) -> list[Phrasing]:
    """The most usual phrasing and others by chance."""
    templates = templates_for(subject)
    others = rng.sample(templates.others, min(how_many - 1, len(templates.others)))
    return [ask(subject, template) for template in (templates.first, *others)]


def held_out(subject: Subject, rng: random.Random) -> list[Phrasing]:
    """Both held-out phrasings, in random order."""
    templates = templates_for(subject).held_out
    return [ask(subject, template) for template in rng.sample(templates, len(templates))]


_LATIN = re.compile(r"[A-Za-z]")
_HAN = re.compile(r"[\u3400-\u9fff]")
_WORD_TWICE = re.compile(r"\b(the|a|an|is|are|was|were|of|in|what|who|which|by|to)\s+(?:\1)\b", re.IGNORECASE)
_TWO_ARTICLES = re.compile(r"\b(?:the|an?)\s+(?:the|an?)\s", re.IGNORECASE)
_WRONG_AN = re.compile(r"\ba\s+[aeioAEIO]\w|\ban\s+[bcdfgjklmnpqrstvwzBCDGJKPQTVWYZ][a-z]")
_PUNCTUATION = re.compile(r"[?？。.!！,，;；:：]{2,}|\s[?.,;:!]|[{}]|\s\s|[（(][）)]|[（(\[“《]\s*$")
_PAIRS = (("(", ")"), ("（", "）"), ("“", "”"), ("《", "》"), ("[", "]"))
_LONGEST_QUESTION = 300


def fault_of(question: str, answer: str, lang: str) -> str | None:
    """What is wrong with the form of this pair, or None. It looks at form only: whether it is true it cannot know."""
    checks = (
        ("question too short", len(question) < (4 if lang == "zh" else 6)),
        ("question too long", len(question) > _LONGEST_QUESTION),
        ("question does not end like one", not question.endswith(("?", "。") if lang == "zh" else ("?", ".")) and not question.endswith("？")),
        ("question begins in lower case", lang == "en" and question[:1].islower()),
        ("stray punctuation or space", bool(_PUNCTUATION.search(question)) or question != question.strip()),
        ("brackets or quotes do not match", any(question.count(a) != question.count(b) for a, b in _PAIRS)),
        ("a word twice", bool(_WORD_TWICE.search(question) or _TWO_ARTICLES.search(question))),
        ("wrong article", lang == "en" and bool(_WRONG_AN.search(question)) and not _WRONG_AN.search(answer)),
        ("verb does not agree", bool(re.search(r"\b(?:What|Who) (?:is|was) (?:these|those|they)\b|\b(?:What|Who) (?:are|were) an?\b", question))),
        ("wrong language", (lang == "zh" and not _HAN.search(question)) or (lang == "en" and not _LATIN.search(question))),
        ("answer is empty or the question", not answer.strip() or answer.strip() == question.strip()),
        ("answer is cut off", not answer.rstrip("”\"'’）)").endswith((".", "!", "?", "。", "！", "？", "…"))),
    )
    return next((what for what, wrong in checks if wrong), None)
