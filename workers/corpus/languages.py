"""The language of a text by its script."""

import re

_HAN = re.compile(r"[\u3400-\u9fff]")
_KANA = re.compile(r"[\u3041-\u30ff]")
_HANGUL = re.compile(r"[\uac00-\ud7af]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_LETTER_RUN = re.compile(r"[^\W\d_]+")
MIN_HAN_SHARE = 0.3  # a Chinese sentence about a foreign name still has more; one Han word in an English one less


def language_of(text: str) -> str:
    """`zh`, `ja`, `ko`, `en` for other text in Latin letters, `und` for the rest. A Han character counts as one word."""
    han, kana, hangul = len(_HAN.findall(text)), len(_KANA.findall(text)), len(_HANGUL.findall(text))
    words = len(_LATIN.findall(text))
    if kana and kana >= 0.1 * (han + kana):
        return "ja"
    if hangul > han + words:
        return "ko"
    if han and han >= MIN_HAN_SHARE * (han + words):
        return "zh"
    if words and words >= 0.5 * len(_LETTER_RUN.findall(text)):
        return "en"
    return "und"


def count_words(text: str) -> int:
    """Words, where every Han or Kana character counts as one."""
    return len(_HAN.findall(text)) + len(_KANA.findall(text)) + len(re.findall(r"[A-Za-z0-9\u00c0-\u024f\u0400-\u04ff\uac00-\ud7af]+", text))
