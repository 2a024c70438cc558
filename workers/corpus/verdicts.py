"""How a claim is asked about and judged. The one place for these phrases: training makes them, evaluation looks for them."""

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    questions: tuple[str, str]  # two ways of asking, with the place for the claim
    yes: str
    no: str
    refusals: tuple[str, ...]  # an answer that begins so says the claim is false

    def ask(self, clause: str, form: int = 0) -> str:
        """The question about a claim that has no final stop."""
        return self.questions[form].format(claim=clause)


VERDICTS = {
    "en": Verdict(("Is it true that {claim}?", "True or false: {claim}."), "Yes, that is true.", "No, that is false.", ("no,", "no.", "that is false", "this is false", "that is not true")),
    "zh": Verdict(("{claim}，对吗？", "判断对错：{claim}。"), "是的，这是对的。", "不对，这是错的。", ("不对", "不是", "这是错的", "错误")),
}


def verdict_for(lang: str | None) -> Verdict:
    return VERDICTS.get(lang or "en", VERDICTS["en"])


def is_refusal(answer: str, lang: str | None) -> bool:
    """Whether the answer begins by calling the claim false; case, width and leading spaces aside."""
    plain = _plain(answer)
    return any(plain.startswith(_plain(phrase)) for phrase in verdict_for(lang).refusals)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()
