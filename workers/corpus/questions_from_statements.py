"""Questions that a statement answers by its own form: "X was discovered by Y" answers "Who discovered X?".

Only patterns that cannot go wrong; a statement that fits none gets none. The answer is always the whole statement.
"""

import re
from collections.abc import Callable

from workers.corpus.phrasing import Phrasing
from workers.corpus.subjects import ASKED, CLAUSE, PERSON, Subject

_MADE = "discovered|invented|founded|written|painted|composed|built|designed|developed|created|introduced|proposed|formulated|established|directed"
_PAST = {"written": "wrote", "built": "built"}  # the rest form the past like the participle
_MAKER = r"[A-Z][\w.'’-]*"
_STOP = r"[,.;:()]|\bwhich\b|\bthat\b|\bwho\b|\bwhere\b|\bwhen\b|\bwith\b|\bbecause\b|\bwhile\b|\band\s+(?:is|are|was|were|has|have|its|their|the)\b"

Pattern = tuple[str, re.Pattern[str], Callable[[Subject, re.Match[str]], str | None]]


def _past(participle: str) -> str:
    return _PAST.get(participle, participle)


def _do(subject: Subject) -> str:
    return "do" if subject.is_plural else "does"


def _who(subject: Subject, found: re.Match[str]) -> str:
    return f"Who {_past(found[1])} {subject.mention}?"


def _when(subject: Subject, found: re.Match[str]) -> str:
    return f"When {found[1]} {subject.mention} {found[2]}?"


def _superlative(subject: Subject, found: re.Match[str]) -> str:
    return f"What {found[1]} the {found[2].strip()}?"


def _part(subject: Subject, found: re.Match[str]) -> str:
    return f"What {found[2]} the {found[1].strip()} of {subject.mention}?"


_ENGLISH: tuple[Pattern, ...] = (
    ("who made it", re.compile(rf"(?:is|are|was|were) (?:first )?({_MADE}) (?:in [^,.;]*? )?by (?:[a-z]+ ){{0,4}}{_MAKER}"), _who),
    ("when was it made", re.compile(rf"(was|were) (?:first )?((?:{_MADE})) (?:[^,.;]*? )?in (?:the year )?\d{{3,4}}\b"), _when),
    ("when was it born", re.compile(r"(was|were) (born) (?:[^,.;]*? )?in \d{3,4}\b"), _when),
    ("what is its capital", re.compile(rf"is the capital (?:city )?of ((?:the )?[A-Z][^,.;]*?)(?={_STOP}|$)"), lambda s, m: f"What is the capital of {m[1].strip()}?"),
    ("what is the most", re.compile(rf"(is|was) the ((?:second |third )?(?:[a-z]+est|most [a-z]+)\b (?!of\b)[^,.;]{{3,60}}?)(?=\s*(?:{_STOP}|$))"), _superlative),
    ("what does it consist of", re.compile(r"(?:consists?|is composed|are composed|is made up|are made up) of \w"), lambda s, m: f"What {_do(s)} {s.mention} consist of?"),
    ("what is it made of", re.compile(r"(is|are) made (?:of|from) \w"), lambda s, m: f"What {m[1]} {s.mention} made of?"),
    ("what does it stand for", re.compile(r"stands? for \w"), lambda s, m: f"What {_do(s)} {s.mention} stand for?"),
    ("what is it measured in", re.compile(r"(is|are) measured in \w"), lambda s, m: f"In what unit {m[1]} {s.mention} measured?"),
    ("where is it", re.compile(r"(is|are|was|were) (?:located|situated) (?:in|on|at|near|between|along) \w"), lambda s, m: f"Where {m[1]} {s.mention} located?"),
    ("where does it take place", re.compile(r"(?:takes?|occurs?) (?:place )?in(?:side)? (?:the|a|an)\b"), lambda s, m: f"Where {_do(s)} {s.mention} {'take place' if 'place' in m[0] else 'occur'}?"),
    ("when does it occur", re.compile(r"(?:occurs?|happens?) when \w"), lambda s, m: f"When {_do(s)} {s.mention} occur?"),
    ("what is it used for", re.compile(r"(is|are) (?:mainly |often |widely |commonly )?used (?:to|for) \w"), lambda s, m: f"What {m[1]} {s.mention} used for?"),
    ("what does it do", re.compile(r"(converts?|pumps?|produces?|measures?|protects?|regulates?|stores?|controls?|removes?|carries|carry|causes?|prevents?|studies|study) [a-z]"),
     lambda s, m: f"What {_do(s)} {s.mention} {_infinitive(m[1])}?"),
)  # fmt: skip
# After "who" or "that": a clause that becomes a question by changing its first word. No pronoun may point back, and nothing follows it.
_CLAUSE_END = r"(?!.*\b(?:he|she|his|her|him|it|its|their|they|one's)\b)([^,;:()]{6,70})$"
_DOES = (
    "asks|carries|catches|changes|circles|controls|converts|covers|creates|divides|explains|explores|feeds|gives|guards|heals|holds|joins|keeps|kills|leads|lets|lifts|links|"
    "lives|makes|measures|moves|needs|produces|protects|pulls|pumps|releases|resists|runs|separates|shows|stores|studies|supplies|teaches|tells|turns|uses"
)
_WHO_DID = re.compile(
    r"(?:was|is) (?:the|an?) [^,;:]{3,50}? who ((?:\w+ed|wrote|led|won|built|made|began|found|drew|sang|taught|gave|became|fought|flew|ran) .*)$"
)
_WHICH_DOES = re.compile(rf"(?:is|was) the ((?:[a-z-]+ ){{0,3}}?[a-z-]+) (?:that|which) ((?:{_DOES}|is|was) .*)$")
_CLAUSE_FIT = re.compile(_CLAUSE_END)


def _who_did(subject: Subject, found: re.Match[str]) -> str | None:
    return f"Who {found[1]}?" if _CLAUSE_FIT.match(found[1]) else None


def _which_does(subject: Subject, found: re.Match[str]) -> str | None:
    return f"Which {found[1]} {found[2]}?" if _CLAUSE_FIT.match(found[2]) else None


_ENGLISH += (("who did it", _WHO_DID, _who_did), ("which does it", _WHICH_DOES, _which_does))
# Anywhere in the statement: "the raw materials of photosynthesis are …".
_PART_OF = "the raw materials|the products?|the main (?:cause|function|purpose|source|ingredients?|component|components)|the capital|the symbol|the unit|the inventor|the author|the founder"


def _infinitive(verb: str) -> str:
    if verb.endswith("ies"):
        return verb[:-3] + "y"
    return verb.removesuffix("s")


_CHINESE: tuple[Pattern, ...] = (
    ("谁做的", re.compile(r"(?:是)?由(?!.{0,40}(?:组成|构成))([^，。；]{1,20}?)(?:于[^，。；]{1,12})?(发明|发现|提出|创立|建立|创作|撰写|设计|创办|所著|绘制)"),
     lambda s, m: f"谁{m[2].replace('所著', '写')}了{s.mention}？"),
    ("由什么组成", re.compile(r"(?:主要)?由[^，。；]{1,40}?(组成|构成)"), lambda s, m: f"{s.mention}由什么{m[1]}？"),
    ("首都", re.compile(r"是([^，。；的]{1,12})的首都"), lambda s, m: f"{m[1]}的首都是哪里？"),
    ("位于", re.compile(r"(?:坐落|位)[于在]"), lambda s, m: f"{s.mention}位于哪里？"),
    ("最", re.compile(r"是((?:[^，。；的是]{1,10}(?:上|中|内|里)?)最[^，。；的是]{1,3}的[^，。；的是之]{1,8})(?=[，。；]|$)"), lambda s, m: f"{m[1]}是什么？" if s.kind != PERSON else None),
    ("哪一年", re.compile(r"(建|成立|始建|创立|爆发|开始|出生|诞生)于(?:公元前?)?\d{2,4}年"), lambda s, m: f"{s.mention}{m[1]}于哪一年？"),
    ("什么是这样", re.compile(r"是(?!一[种个门类项座片颗只]|由|指)([^，。；：是]{4,24}的[^，。；的]{1,8})$"), lambda s, m: f"{m[1]}是{'谁' if s.kind == PERSON else '什么'}？"),
    ("用途", re.compile(r"(?:主要|常|可|通常|被|广泛)?(?:用于|用来)[^，。；]"), lambda s, m: f"{s.mention}有什么用途？"),
    ("单位", re.compile(r"的单位是"), lambda s, m: f"{s.mention}的单位是什么？"),
)  # fmt: skip


_ASK_FOR_THE_SUBJECT = frozenset({"what is the most", "who did it", "which does it", "最", "什么是这样"})


def questions_from(subject: Subject, statement: str) -> list[Phrasing]:
    """Questions that `statement` surely answers, most telling first; none where no pattern fits."""
    if subject.kind in (ASKED, CLAUSE):
        return []
    found: list[Phrasing] = []
    if subject.predicate:
        for name, pattern, question in _CHINESE if subject.lang == "zh" else _ENGLISH:
            match = pattern.match(subject.predicate)
            text = question(subject, match) if match else None
            # A question that names what it asks for gives its answer away.
            if text and not (subject.mention.casefold() in text.casefold() and name in _ASK_FOR_THE_SUBJECT):
                found.append(Phrasing(name, text))
    elif part := re.match(rf"({_PART_OF}) of {re.escape(subject.mention)} (is|are|was|were) ", statement, re.IGNORECASE):
        found.append(Phrasing("what is a part of it", f"What {part[2]} {part[1].lower()} of {subject.mention}?"))
    elif part := re.match(rf"{re.escape(subject.mention)}的([^，。；的是]{{1,8}})(?:主要)?(是|有|包括)", statement):
        found.append(Phrasing("什么", f"{subject.mention}的{part[1]}{part[2]}{'什么' if part[2] == '是' else '哪些'}？"))
    return found
