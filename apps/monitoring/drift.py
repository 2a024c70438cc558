"""Whether what comes in, and how it is judged, is other than it was: ratings and topics, the newest against those before."""

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from time import monotonic
from typing import TypeVar

from django.db.models import Avg, Count, StdDev

from apps.feedback.models import Feedback
from apps.serving.models import Answer

NEW_RATINGS, OLD_RATINGS, FEWEST_RATINGS = 50, 200, 100
NEW_QUESTIONS, OLD_QUESTIONS = 100, 400
FEWEST_OLD_QUESTIONS = 100
ANSWERS_READ = 5000  # among which so many different questions are looked for
WORDS = 512  # dimensions that words are thrown into
SHUFFLES = 40
LOOKED_AT_EVERY_SECONDS = 30.0  # a drift is none of seconds, and reading thousands of questions takes a while
_WORD = re.compile(r"[㐀-鿿]|\w+")

Figure = TypeVar("Figure", bound=float | None)


def _seldom(measure: Callable[[], Figure]) -> Callable[[], Figure]:
    """The last figure, unless it is old. Of a process that asks again and again, such as beat."""
    known: list[tuple[float, Figure]] = []

    @wraps(measure)
    def asked() -> Figure:
        if not known or monotonic() - known[0][0] > LOOKED_AT_EVERY_SECONDS:
            known[:] = [(monotonic(), measure())]
        return known[0][1]

    return asked


def rating_drop() -> float | None:
    """By how much the last 50 ratings are worse than the 200 before, in standard errors."""
    ids = list(Feedback.objects.order_by("-id").values_list("pk", flat=True)[: NEW_RATINGS + OLD_RATINGS])
    if len(ids) < FEWEST_RATINGS:
        return None

    def of(pks):
        return Feedback.objects.filter(pk__in=pks).aggregate(mean=Avg("rating"), spread=StdDev("rating"), count=Count("pk"))

    new, old = of(ids[:NEW_RATINGS]), of(ids[NEW_RATINGS:])
    error = (new["spread"] ** 2 / new["count"] + old["spread"] ** 2 / old["count"]) ** 0.5
    return (old["mean"] - new["mean"]) / error if error else 0.0


def topic_drift() -> float | None:
    """How far the words of the last 100 different questions are from those of the 400 before, in standard deviations of what chance does: the
    same questions dealt out at random. None while there are too few."""
    asked: dict[str, str] = {}
    for key, prompt in Answer.objects.order_by("-id").values_list("prompt_key", "prompt")[:ANSWERS_READ]:
        asked.setdefault(key, prompt)
        if len(asked) >= NEW_QUESTIONS + OLD_QUESTIONS:
            break
    if len(asked) < NEW_QUESTIONS + FEWEST_OLD_QUESTIONS:
        return None
    return distance_in_deviations([_words(prompt) for prompt in asked.values()], NEW_QUESTIONS)


def distance_in_deviations(questions: Sequence[Counter[int]], new: int) -> float:
    """Of the first `new` questions' words from the others', against `SHUFFLES` deals of the same questions."""
    found = _distance(questions[:new], questions[new:])
    deal, chance = random.Random(0), []
    for _shuffle in range(SHUFFLES):
        dealt = deal.sample(questions, len(questions))
        chance.append(_distance(dealt[:new], dealt[new:]))
    mean = sum(chance) / SHUFFLES
    spread = (sum((each - mean) ** 2 for each in chance) / (SHUFFLES - 1)) ** 0.5
    return (found - mean) / spread if spread else 0.0


def _words(text: str) -> Counter[int]:
    """A Chinese character is a word. Each word of a question counts once: a long one is no more of its topic than a short one."""
    return Counter({zlib.crc32(word.encode()) % WORDS for word in _WORD.findall(text.lower()[:2000])})


def _distance(one: Sequence[Counter[int]], other: Sequence[Counter[int]]) -> float:
    """Hellinger's, from 0 to 1, of the frequencies of words."""
    shares = []
    for group in (one, other):
        total: Counter[int] = Counter()
        for words in group:
            total.update(words)
        everything = sum(total.values()) or 1
        shares.append({word: (count / everything) ** 0.5 for word, count in total.items()})
    mine, theirs = shares
    overlap = sum(root * theirs.get(word, 0.0) for word, root in mine.items())
    return max(0.0, 1.0 - overlap) ** 0.5


slow_rating_drop, slow_topic_drift = _seldom(rating_drop), _seldom(topic_drift)
