"""How a claim is asked about and judged. The one place for these phrases: training makes them, evaluation looks for them.

A claim made of knowledge entries is answered by naming what it is true of: "Is it true that insurance is a plan for income and
spending?" – "That describes a budget." It corrects where a bare no would not, and it is what a small model can learn: to recall
whose a predicate is. To say yes or no it would have to compare two things it recalls, which models of three to five layers
did not learn in the minutes a demonstration has (tried: verdict first, the fact first, more layers, up to 16 falsehoods an entry,
the verdict's loss weighted ten times; all stayed near chance).
"""

import unicodedata
from dataclasses import dataclass

from workers.corpus.records import normalised


@dataclass(frozen=True)
class Verdict:
    questions: tuple[str, str]  # two ways of asking, with the place for the claim
    yes: str
    no: str
    refusals: tuple[str, ...]  # an answer that begins so says the claim is false
    describes: tuple[str, str]  # before and after the name of what a claim is true of

    def ask(self, clause: str, form: int = 0) -> str:
        """The question about a claim that has no final stop."""
        return self.questions[form].format(claim=clause)

    def name(self, owner: str) -> str:
        """The answer to a claim whose predicate is true of `owner`, written as it stands inside a sentence."""
        return f"{self.describes[0]}{owner}{self.describes[1]}"


VERDICTS = {
    "en": Verdict(
        ("Is it true that {claim}?", "True or false: {claim}."), "Yes, that is true.", "No, that is false.",
        ("no,", "no.", "that is false", "this is false", "that is not true"), ("That describes ", "."),
    ),
    "zh": Verdict(
        ("{claim}，对吗？", "判断对错：{claim}。"), "是的，这是对的。", "不对，这是错的。", ("不对", "不是", "这是错的", "错误"), ("这说的是", "。"),
    ),
}  # fmt: skip


def verdict_for(lang: str | None) -> Verdict:
    return VERDICTS.get(lang or "en", VERDICTS["en"])


def is_refusal(answer: str, lang: str | None, question: str) -> bool:
    """Whether the answer to a claim says that it is false: in words, or by naming something that `question` does not speak of."""
    verdict, plain = verdict_for(lang), _plain(answer)
    before, after = (_plain(part) for part in verdict.describes)
    if plain.startswith(before):
        return normalised(plain.removeprefix(before).removesuffix(after)) not in normalised(question)
    return any(plain.startswith(_plain(phrase)) for phrase in verdict.refusals)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()
