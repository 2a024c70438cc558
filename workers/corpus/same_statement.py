"""Do two texts that look alike say the same? Sharing a template is not enough.

"The capital of France is Paris." and "The capital of Spain is Madrid." share most of their shingles in a longer sentence. The
words in which two texts differ decide: another number, another name, another subject or a negation makes another statement.
"""

import difflib
import re

# Longer texts that agree in most shingles are copies, whatever figure differs in them (a date, a counter of views).
MAX_TOKENS = 70
SUBJECT_TOKENS = 4
TYPO_SIMILARITY = 0.7
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_\u3400-\u9fff]+(?:['’-][^\W\d_\u3400-\u9fff]+)*|[\u3400-\u9fff]")
_NUMBER = re.compile(r"\d|^[零〇一二两三四五六七八九十百千万亿]$")
_NEGATION = frozenset({"not", "no", "never", "none", "cannot", "neither", "nor", "without", "不", "没", "无", "非", "未", "否"})
_OPPOSITE_WORDS = (
    "increase decrease increases decreases more less largest smallest highest lowest hot cold north south east west before after true false left right "
    "upper lower first last inside outside above below old new early late 大 小 多 少 高 低 上 下 左 右 东 西 南 北 前 后 内 外 增 减 冷 热 长 短 快 慢 正 负 阴 阳"
)
_OPPOSITES = frozenset(_OPPOSITE_WORDS.split())
_NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve hundred thousand million billion half twice first second third fourth fifth"
)
_NUMBER_WORDS = frozenset(_NUMBERS.split())
_ARTICLES = frozenset({"the", "a", "an", "this", "these", "in", "of", "for", "一", "个", "种", "是"})


def same_statement(a: str, b: str) -> bool:
    """Whether `a` and `b`, whose shingles mostly agree, say the same thing in slightly other words."""
    if max(a.count(" "), b.count(" ")) > MAX_TOKENS:
        return True
    left, right = _TOKEN.findall(a), _TOKEN.findall(b)
    if max(len(left), len(right)) > MAX_TOKENS:
        return True
    plain_left, plain_right = [t.casefold() for t in left], [t.casefold() for t in right]
    for tag, i, j, m, n in difflib.SequenceMatcher(None, plain_left, plain_right, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        gone, come = left[i:j], right[m:n]
        if any(t.casefold() in _NEGATION for t in gone + come):
            return False
        if tag == "replace" and _says_otherwise(gone, come, starts=min(i, m)):
            return False
    return True


def _says_otherwise(gone: list[str], come: list[str], *, starts: int) -> bool:
    """A replaced passage: does it change a number, a name, the subject or a quality into its opposite?"""
    plain = {t.casefold() for t in gone}, {t.casefold() for t in come}
    if plain[0] & _OPPOSITES and plain[1] & _OPPOSITES:  # before the next question: "increase" looks like a misspelt "decrease"
        return True
    if _is_typo(gone, come):
        return False
    if _numbers(gone) != _numbers(come):
        return True
    if _names(gone, starts) and _names(come, starts):
        return True
    return starts < SUBJECT_TOKENS and bool(plain[0] - _ARTICLES) and bool(plain[1] - _ARTICLES)


def _is_typo(gone: list[str], come: list[str]) -> bool:
    one, other = "".join(gone).casefold(), "".join(come).casefold()
    if any(c.isdigit() for c in one + other):
        return one == other
    return min(len(one), len(other)) >= 3 and difflib.SequenceMatcher(None, one, other).ratio() >= TYPO_SIMILARITY


def _numbers(tokens: list[str]) -> list[str]:
    return [t.casefold() for t in tokens if _NUMBER.search(t) or t.casefold() in _NUMBER_WORDS]


def _names(tokens: list[str], starts: int) -> bool:
    """Capitalised words that do not owe it to the start of the text."""
    return any(t[0].isupper() and (starts > 0 or n > 0) for n, t in enumerate(tokens))
