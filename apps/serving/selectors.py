"""What the chat page shows beside the conversation itself."""

import json
from functools import lru_cache
from itertools import groupby

from apps import artifacts
from apps.demonstration import selectors as demonstration
from apps.registry.models import EvaluationSet
from apps.serving.answer_log import answers
from apps.serving.models import Conversation
from apps.serving.pictures import picture_of

SUGGESTIONS = 4
_LINES_LOOKED_AT = 400


def turns_of(conversation: Conversation) -> list[dict]:
    """Oldest first: each question once, with all answers that were made to it."""
    rows = answers().filter(conversation=conversation).select_related("model_version", "feedback").order_by("id")
    groups = [list(answers) for _, answers in groupby(rows, key=lambda row: (row.prompt, len(row.messages), picture_of(row.messages)))]
    return [{"question": answers[0].prompt, "image": picture_of(answers[0].messages), "answers": answers} for answers in groups]


def first_version_seconds() -> float | None:
    """How long until the demonstration's first version answers; None where none is on its way."""
    running = demonstration.current()
    if running is None or running.status != running.Status.RUNNING:
        return None
    return demonstration.progress(running).first_live_eta_seconds


def suggestions(language: str) -> list[str]:
    """A few held-out questions in the reader's language: what this model was made to answer."""
    newest = EvaluationSet.objects.values_list("path", flat=True).first()
    return list(_suggestions(newest, "zh" if language.startswith("zh") else "en")) if newest else []


@lru_cache(maxsize=8)
def _suggestions(path: str, lang: str) -> tuple[str, ...]:
    found: dict[str, str] = {}  # domain → question, so that they are about different things
    with artifacts.open_file(path) as file:
        for _, line in zip(range(_LINES_LOOKED_AT), file, strict=False):
            row = json.loads(line)
            if row["kind"] == "question" and not row.get("image") and row.get("lang", "en") == lang and len(row["question"]) < 60:
                found.setdefault(row.get("domain") or "", row["question"])
    return tuple(list(found.values())[:SUGGESTIONS])
