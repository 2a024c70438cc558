import itertools
import json

from django.utils.translation import gettext as _

from apps import artifacts
from apps.accounts.problems import Conflict
from apps.batches.models import BatchJob


def batches():
    return BatchJob.objects.select_related("model_version", "dataset", "created_by")


def require_answers(job: BatchJob) -> str:
    """Where the answers are. Conflict while there are none."""
    if not job.answers:
        raise Conflict(_("This batch has not finished yet; its answers can be had when it has."))
    return job.answers


def first_answers(job: BatchJob, most: int) -> list[dict]:
    """For the page: what was asked last, and what came of it."""
    if not job.answers:
        return []
    with artifacts.open_file(job.answers) as file:
        entries = [json.loads(line) for line in itertools.islice(file, most)]
    return [{"asked": _asked(entry), "answer": entry.get("answer"), "error": entry.get("error")} for entry in entries]


def _asked(entry: dict) -> str:
    messages = entry.get("messages")
    text = messages[-1].get("content") if isinstance(messages, list) and messages and isinstance(messages[-1], dict) else None
    return str(text or entry.get("prompt") or entry.get("question") or "")
