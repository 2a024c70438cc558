"""Embeddings: texts go to an inference worker, and their vectors come back in one piece. Nothing of them is kept."""

import base64
import json
import sys
import time
from array import array
from dataclasses import dataclass

from django.conf import settings
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.accounts.problems import QUEUE_OUTAGES, Problem, TimedOut, queue_outage
from apps.accounts.quotas import Quota
from apps.database import release
from apps.ids import new_id
from apps.monitoring import names
from apps.monitoring.traces.journey import current
from apps.redis import Ledger, connection
from apps.registry.models import ModelVersion
from apps.serving import flight
from apps.serving.routing import route
from apps.serving.services import outcome_of, refusal_of, sent_with
from apps.serving.turns import turns
from dsportal.celery import app as celery

CHANNEL = "embeddings"


@dataclass(frozen=True)
class Embeddings:
    version: ModelVersion
    vectors: list[array]  # of 32-bit floats, in the order of the texts
    tokens: int


def embed(*, texts: list[str], user: User, version: str, quota: Quota | None = None) -> Embeddings:
    """Problem for what the version cannot embed; Busy, TimedOut, Unavailable. With a quota the request is taken."""
    request, journey = new_id(), current()
    if quota:
        quota.take_request()
    with journey.phase("database", what="version"):
        model = route(asked=version, subject=str(user.pk), epoch=quota.epoch if quota else None).version
    journey.answered(None, model, CHANNEL)
    outcome, tokens = "error", 0
    try:
        found = _ask(request, texts, model, str(user.pk))
        outcome, tokens = "ok", found["tokens"]
    except Problem as problem:
        outcome = outcome_of(problem)
        raise
    except QUEUE_OUTAGES as lost:
        raise queue_outage() from lost
    finally:
        journey.observe(version=model.pk, route=CHANNEL, outcome=outcome, prompt_tokens=tokens)
    if quota:
        ledger = Ledger()
        quota.spend_tokens(tokens, ledger)
        ledger.write()
    return Embeddings(model, [_floats(text) for text in found["vectors"]], tokens)


def _ask(request: str, texts: list[str], model: ModelVersion, tenant: str) -> dict:
    turns.give_up()
    release()
    now, seconds = time.time(), settings.ANSWER_TIMEOUT_SECONDS
    flight.enter(request)
    try:
        celery.send_task(
            "dsportal.embed", kwargs={"request": request, "version": model.pk, "texts": texts, "deadline": now + seconds, "tenant": tenant},
            queue="inference", expires=seconds, task_id=request, headers=sent_with(current(), CHANNEL),
        )  # fmt: skip
        while time.time() < now + seconds:  # in turns shorter than the connection's own limit
            if answer := connection().blpop([names.EMBEDDING.format(request=request)], timeout=1):
                found = json.loads(answer[1])
                if "error" in found:
                    raise refusal_of(found)
                if found.get("late"):
                    break
                return found
        raise TimedOut(_("No embedding within %(n)s s. Ask again, or for fewer texts.") % {"n": f"{seconds:.0f}"})
    finally:
        flight.leave(request)


def _floats(encoded: str) -> array:
    vector = array("f", base64.b64decode(encoded))
    if sys.byteorder == "big":
        vector.byteswap()
    return vector
