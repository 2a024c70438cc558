"""How the title of a knowledge entry is spoken of in a sentence: its article, verb, case, and whether it names a person.

The entry's own statement knows best: "The French Revolution was …" gives "What was the French Revolution?".
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

CONCEPT, NAME, PERSON, ASKED, CLAUSE = "concept", "name", "person", "asked", "clause"
LONGEST_ANSWER = 240  # characters of a statement used as an answer; a Han character counts twice

_PROFESSION = (
    r"(?:\w+(?:ologist|ographer|ematician|osopher|ysicist|emist|onomer|ronaut|monaut|conomist|iologist|ovelist|ramatist|torian)|scientist|naturalist|botanist|writer|"
    r"author|poet|playwright|painter|composer|engineer|inventor|explorer|navigator|traveller|traveler|emperor|empress|king|queen|pharaoh|president|prime minister|"
    r"leader|general|politician|statesman|revolutionary|architect|sculptor|musician|pianist|singer|actor|actress|nurse|doctor|physician|surgeon|lawyer|judge|activist|"
    r"monk|priest|programmer|polymath|scholar|calligrapher|teacher|educator|director|filmmaker|artist|thinker|theorist|logician|footballer|athlete|player|champion|"
    r"entrepreneur|industrialist|nobleman|conqueror|ruler|woman|man|person)"
)
_ZH_PERSON = re.compile(
    r"(?:学家|作家|画家|思想家|政治家|教育家|音乐家|艺术家|军事家|发明家|航海家|探险家|革命家|书法家|作曲家|科学家|企业家|旅行家|诗人|词人|皇帝|国王|女王|"
    r"总统|学者|医生|将军|工程师|建筑师|设计师|导演|演员|法官|律师|领袖|僧人|宇航员|航天员)(?:之一)?$"
)
_ASKING = re.compile(r"^(?:what|why|how|who|whom|whose|when|where|which|is|are|was|were|do|does|did|can|could|should|will|would)\s", re.IGNORECASE)
_CLAUSE = re.compile(r"^(?:how|why|when|where|what)\s", re.IGNORECASE)
_ZH_ASKING = re.compile(r"为什么|怎么|怎样|如何|什么|谁|哪|是否|吗$|几")
_ARTICLE = re.compile(r"^(the|a|an)\s+", re.IGNORECASE)
_SMALL = frozenset({"of", "the", "and", "in", "on", "for", "to", "a", "an", "de", "la", "von", "van", "or", "by", "with"})
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
# Endings and classes of common nouns, for a capitalised single word of which no sentence shows the case.
_COMMON_ENDING = re.compile(
    r"(?:tion|sion|sis|ism|ity|ment|ness|ology|graphy|ics|metry|ance|ence|ing|ture|age|ship|logy|nomy|tude|ysis|lysis|hood|cy|gen|ide|ate|ine|ose|phase|scope|meter)s?$"
)
_COMMON_CLASS = re.compile(
    r"^(?:the|a|an|any)\s+(?:[\w-]+\s+){0,3}?(?:process|force|study|branch|measure|tendency|ability|practice|method|condition|disease|change|amount|property|unit|"
    r"technique|type|kind|form|set|rate|art|science|state|substance|device|tool|tax|rise|decline|hormone|protein|gas|chemical|metal|mineral|vitamin|liquid|"
    r"compound|grain|organ|muscle|gland|bone|cell|tissue|molecule|particle|number|shape|figure|sum|act|right|document|rule|instrument|dish|food|drink|sport|"
    r"game|crop|plant|animal|insect|rock|layer|material|machine|signal|structure|technology|medicine|drug|illness|infection|loss|fear|feeling|payment|contract)s?\b"
)
_PROPER_ADJECTIVE = re.compile(
    r"(?:ian|ean|ese|(?<!f)ish)$|^(?:roman|german|french|greek|dutch|swiss|latin|arabic|islamic|catholic|olympic|nobel|gothic|moore|moors)$"
)
# Isms named after a person, a people or a god stay capitalised.
_PROPER_ISM = re.compile(r"(?:buddh|christian|hindu|juda|islam|sikh|tao|dao|confucian|marx|darwin|catholic|protestant|calvin|zoroastr)(?:ism|ity)$")
_IRREGULAR_PLURAL = re.compile(r"(?:bacteria|mitochondria|people|children|men|women|fungi|algae|phenomena|mice|teeth|feet|nuclei|larvae|criteria)$")
_NO_VERB = re.compile(r"(?:in|on|at|of|from|for|with|by|to|and|or|as)\b", re.IGNORECASE)
# The case of a word shows in few sentences; more of them would only cost time.
_TEXTS_LOOKED_AT = 20_000


@dataclass(frozen=True)
class Subject:
    """`mention` stands inside a sentence ("the heart"), `verb` agrees with it (is, are, was, were; empty in Chinese).

    `predicate` is what the statement says of it, from its verb on and without the final stop; None where the statement does
    not begin with the title.
    """

    lang: str
    kind: str
    mention: str
    verb: str
    predicate: str | None

    @property
    def is_plural(self) -> bool:
        return self.verb in ("are", "were")

    @property
    def opening(self) -> str:
        """The mention as the beginning of a sentence."""
        return self.mention[:1].upper() + self.mention[1:] if self.lang != "zh" and not _keeps_case(self.mention.split()[0]) else self.mention


def lower_case_words(texts: Iterable[str]) -> frozenset[str]:
    """Words which these texts write in lower case inside a sentence more often than capitalised."""
    lower: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    for text in islice(texts, _TEXTS_LOOKED_AT):
        for match in _WORD.finditer(text):
            word, before = match.group(), text[: match.start()][-2:]
            if word[0].islower():
                lower[word] += 1
            elif before[-1:] == " " and before[:1].isalpha():  # capitalised, and not because a sentence begins
                capital[word.lower()] += 1
    return frozenset(word for word, times in lower.items() if times > capital[word])


def statement_of(text: str, lang: str) -> str:
    """The first sentences of `text`, as many as make a short answer; at least one."""
    text = " ".join(text.split()) if lang != "zh" else "".join(text.split("\n"))
    width = 2 if lang == "zh" else 1
    if len(text) * width <= LONGEST_ANSWER:
        return text
    sentences = re.split(r"(?<=[。！？])" if lang == "zh" else r"(?<=[.!?])\s+(?=[A-Z\"“(])", text)
    taken = sentences[0]
    for sentence in sentences[1:]:
        longer = f"{taken}{'' if lang == 'zh' else ' '}{sentence}"
        if len(longer) * width > LONGEST_ANSWER:
            break
        taken = longer
    return taken


def subject_of(title: str, statement: str, lang: str, lower_words: frozenset[str]) -> Subject:
    """How to speak of the entry with this title and statement."""
    # A title without a word stays as it is: what is asked about it fails the check of form.
    title = title.strip().rstrip("。.").rstrip() or title.strip() or "?"
    return _chinese(title, statement) if lang == "zh" else _english(title, statement, lang, lower_words)


def _chinese(title: str, statement: str) -> Subject:
    name = title.rstrip("？?")
    rest = statement.removeprefix(title)
    rest = re.sub(r"^（[^）]*）", "", rest)
    predicate = rest.rstrip("。！!.") if statement.startswith(title) and rest and rest[0] not in "的，,、和与" else None
    if title.endswith(("？", "?")) or _ZH_ASKING.search(title):
        return Subject("zh", ASKED, name, "", None)
    first_clause = re.split(r"[，。；,;]", re.sub(r"（[^）]*）", "", statement), maxsplit=1)[0]
    if predicate and not _ZH_PERSON.search(title) and predicate.startswith("是") and _ZH_PERSON.search(first_clause):
        return Subject("zh", PERSON, name, "", predicate)
    return Subject("zh", CONCEPT, name, "", predicate)


def _english(title: str, statement: str, lang: str, lower_words: frozenset[str]) -> Subject:
    if title.endswith("?"):
        return Subject(lang, ASKED, title.rstrip("?").strip(), "", None)
    if len(title.split()) > 2 and _ASKING.match(title):
        kind = (
            CLAUSE
            if _CLAUSE.match(title) and not re.match(r"^\w+\s(?:is|are|was|were|do|does|did|can|could|has|have)\b", title, re.IGNORECASE)
            else ASKED
        )
        return Subject(lang, kind, title[0].lower() + title[1:] if kind == CLAUSE else title, "", None)
    own_article = _ARTICLE.match(title)
    bare = title[own_article.end() :] if own_article else title
    start = re.match(rf"(?:(the|an?)\s+)?{re.escape(bare)}(?:\s*\([^)]*\))?,?(?=[\s,])\s*(.*)$", statement, re.IGNORECASE | re.DOTALL)
    inside = re.search(rf"(?<=[a-z,] )(?:(the|an?)\s+)?({re.escape(bare)})\b", statement, re.IGNORECASE)
    article = ((start and start[1]) or (own_article and own_article[1]) or (not start and inside and inside[1]) or "").lower()
    predicate = start[2].rstrip(" .!") if start and not _NO_VERB.match(start[2]) else None
    verb = _verb(bare, predicate)
    name = _in_sentence_case(bare, article, predicate, inside[2] if inside else None, lower_words)
    mention = f"{article} {name}" if article else name
    proper = name[0].isupper() and not name.split()[0].isupper()
    if (
        predicate
        and proper
        and not article
        and re.match(rf"(?:(?:is|was)\s+(?:an?|the|one of)\s+(?:[\w'’-]+[\s,]+){{0,6}}?{_PROFESSION}s?\b|was born\b)", predicate)
    ):
        return Subject(lang, PERSON, mention, verb, predicate)
    return Subject(lang, NAME if proper else CONCEPT, mention, verb, predicate)


def _verb(title: str, predicate: str | None) -> str:
    """The form of "to be" that agrees with the title; past only where the statement says what it *was*."""
    if said := re.match(r"(was|were)\s+(?:an?|the|one)\b", predicate or ""):
        return said[1]
    if said := re.match(r"(is|are|was|were)\b", predicate or ""):
        return "is" if said[1] in ("is", "was") else "are"
    last = title.rsplit(maxsplit=1)[-1].lower()
    if not (last.endswith("s") and not last.endswith(("ss", "us", "'s", "’s"))) and not _IRREGULAR_PLURAL.search(last):
        return "is"
    following = re.match(r"(?:(?:\w+ly|often|also|always)\s+)?([a-z]+)", predicate or "")
    if following:  # "antibiotics kill", but "physics studies"
        return "is" if following[1].endswith("s") else "are"
    return "is" if last.endswith(("ics", "is", "as", "os", "news")) else "are"


def _in_sentence_case(title: str, article: str, predicate: str | None, seen_inside: str | None, lower_words: frozenset[str]) -> str:
    """The title as it is written inside a sentence: common nouns in lower case, names as they are."""
    first, *others = title.split()
    lowered = title[0].lower() + title[1:]
    if not first[0].isupper() or _keeps_case(first) or first.endswith(("'s", "’s", "s'", "s’")):
        return title
    if any(word[0].isupper() for word in others if word.lower() not in _SMALL):
        return title
    word = first.lower()
    if seen_inside is not None and seen_inside[0].islower():
        return lowered
    # Socrates ends like a common noun, but was a philosopher.
    was_somebody = re.match(rf"was\s+(?:an?|the)\s+(?:[\w'’-]+\s+){{0,4}}{_PROFESSION}\b", predicate or "")
    if seen_inside is not None or was_somebody or _PROPER_ISM.match(word) or (_PROPER_ADJECTIVE.search(word) and word not in lower_words):
        return title
    if word in lower_words or others or article in ("a", "an"):
        return lowered
    said = re.sub(r"^(?:is|are|was|were)\s+", "", predicate or "")
    return lowered if _COMMON_ENDING.search(word) or _COMMON_CLASS.match(said) else title


def _keeps_case(word: str) -> bool:
    """DNA, pH, iPhone, T4: a capital or a digit beyond the first letter is part of the word."""
    return any(character.isupper() or character.isdigit() for character in word[1:]) or (len(word) == 1 and word not in "aAI")
