"""What of a conversation is not kept: the settings name kinds, and a pattern of one's own."""

import re
from functools import lru_cache

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from apps.serving.models import Answer

PATTERNS = {
    "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "card": r"\b(?:\d[ -]?){12,18}\d\b",
    "phone": r"(?<![\w.])\+?\(?\d(?:[ ()-]{0,2}\d){7,14}(?![\w.])",
    "ip": r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
}
PICTURES = "picture"
OWN = "redacted"


@lru_cache(maxsize=8)
def _compiled(kinds: tuple[str, ...], own: str) -> list[tuple[str, re.Pattern]]:
    if unknown := set(kinds) - {*PATTERNS, PICTURES}:
        raise ImproperlyConfigured(f"DSPORTAL_REDACT names {sorted(unknown)[0]}; there are {', '.join([*PATTERNS, PICTURES])}.")
    found = [(kind, re.compile(PATTERNS[kind])) for kind in PATTERNS if kind in kinds]  # cards before telephones, which they look like
    return [*found, (OWN, re.compile(own))] if own else found


def redacted(row: Answer) -> Answer:
    """The row, its texts without what is not to be kept."""
    patterns = _compiled(tuple(settings.REDACT), settings.REDACT_PATTERN)
    if not patterns and PICTURES not in settings.REDACT:
        return row

    def without(text: str) -> str:
        for kind, pattern in patterns:
            text = pattern.sub(f"[{kind}]", text)
        return text

    row.prompt, row.text, row.error = without(row.prompt), without(row.text), without(row.error)[:300]
    row.messages = [
        {
            name: without(value) if name == "content" else value
            for name, value in message.items()
            if name != "image" or PICTURES not in settings.REDACT
        }
        for message in row.messages
    ]
    return row
