"""Rows of a batch: what each asks. Light: the web process looks at the first rows with it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_LINE_BYTES = 1 << 20
ROLES = ("system", "user", "assistant")
FIELDS = "a row needs `prompt`, `question` or `messages`"


class BadPrompt(ValueError):
    """A row asks nothing. The message is for people."""


class Prompt(NamedTuple):
    row: int  # from 0 on, over all files
    fields: dict[str, Any]  # as they came; empty where the line is no JSON object
    messages: list[dict[str, str]]
    wrong: str  # why it cannot be asked; empty where it can


def messages_of(fields: dict[str, Any], system: str = "") -> list[dict[str, str]]:
    """`prompt` or `question` is text; `messages` has roles and contents, as OpenAI's. BadPrompt."""
    given = fields.get("messages")
    if given is None:
        text = fields.get("prompt", fields.get("question"))
        if not isinstance(text, str) or not text.strip():
            raise BadPrompt(FIELDS)
        given = [{"role": "user", "content": text}]
    if not isinstance(given, list) or not given:
        raise BadPrompt("`messages` must be a list of messages")
    for message in given:
        if not isinstance(message, dict) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise BadPrompt(f"a message needs a role ({', '.join(ROLES)}) and its content as text")
    if not any(message["role"] == "user" and message["content"].strip() for message in given):
        raise BadPrompt("no message of the user asks anything")
    plain = [{"role": message["role"], "content": message["content"]} for message in given]
    return [{"role": "system", "content": system}, *plain] if system and plain[0]["role"] != "system" else plain


def read_prompts(files: Iterable[Path], system: str = "") -> Iterator[Prompt]:
    """All rows in their order, good and bad; blank lines are none."""
    row = 0
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                if line.strip():
                    yield _read(row, line, system)
                    row += 1


def _read(row: int, line: bytes, system: str) -> Prompt:
    fields: dict[str, Any] = {}
    try:
        if len(line) > MAX_LINE_BYTES:
            raise BadPrompt(f"the line has more than {MAX_LINE_BYTES:,} bytes")
        read = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
        if not isinstance(read, dict):
            raise BadPrompt("the line is no JSON object")
        fields = read
        return Prompt(row, fields, messages_of(fields, system), "")
    except BadPrompt as bad:
        return Prompt(row, fields, [], str(bad))
    except (ValueError, RecursionError):
        return Prompt(row, fields, [], "the line is no JSON")
