"""Embeddings in the `inference` worker: the texts of one request go to the process's engine together."""

import base64
import json
import logging
import time

from django.db import close_old_connections

from apps.monitoring import names
from apps.redis import connection
from dsportal.celery import app
from workers.tasks.answers import WORKER, engines
from workers.tasks.engines import NoRoom
from workers.tasks.making import askers_mistake
from workers.tasks.phases import Phases

log = logging.getLogger(__name__)

KEPT_SECONDS = 120


@app.task(name="dsportal.embed", bind=True, ignore_result=True, acks_late=True, reject_on_worker_lost=True)
def embed(self, *, request: str, version: str, texts: list[str], deadline: float, tenant: str) -> None:
    """`deadline` is in seconds since 1970. Done again when a worker dies in the middle: whoever waits takes the first result."""
    close_old_connections()
    if time.time() > deadline:
        return
    phases = Phases(version, self.request.headers or {})
    try:
        found = _embed(version, texts, deadline, tenant, phases)
    except Exception:  # whatever it was, somebody waits for a word, and nobody above here gives one
        log.exception("embedding %s failed in the worker", request)
        found = {"error": f"The embedding failed by a fault of the portal's own. The inference worker's log has more, under {request}."}
    key = names.EMBEDDING.format(request=request)
    pipe = connection().pipeline()
    pipe.rpush(key, json.dumps(found))
    pipe.expire(key, KEPT_SECONDS)
    pipe.execute()


def _embed(version: str, texts: list[str], deadline: float, tenant: str, phases: Phases) -> dict:
    from workers.engine import EngineError

    ends, tickets = time.monotonic() + deadline - time.time(), []
    try:
        began = time.time_ns()
        with engines.lent(version, ends) as engine:
            phases.loaded(began)
            asked = time.time_ns()
            for text in texts:
                tickets.append(engine.embed(text, tenant=tenant, deadline=ends))
            done = [ticket.result() for ticket in tickets]
        for completion in done:
            phases.answered(asked, completion, WORKER)
        vectors = [ticket.embedding for ticket in tickets]
    except (EngineError, NoRoom) as failure:
        return askers_mistake(failure) or {"error": str(failure)}
    finally:
        for ticket in tickets:
            ticket.cancel()  # nothing where it is done
    if any(vector is None for vector in vectors):
        return {"late": True}
    return {"vectors": [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors], "tokens": sum(d.prompt_tokens for d in done)}
