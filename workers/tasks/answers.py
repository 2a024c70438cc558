"""The `inference` worker: Celery threads hand their sequence to the process's engine and publish its text to Redis."""

import json
import logging
import os
import queue
import socket
import sys
import threading
import time
import zlib

from celery import signals
from django.conf import settings
from django.db import close_old_connections
from redis import RedisError

from apps import artifacts
from apps.accounts.problems import Problem
from apps.monitoring import names
from apps.monitoring.presence import keep_presence
from apps.redis import connection
from apps.registry.models import ModelVersion
from dsportal.celery import app
from workers.tasks.cancelling import cancellations
from workers.tasks.engines import Engines, NoRoom
from workers.tasks.following import follow, load_first
from workers.tasks.phases import Phases

log = logging.getLogger(__name__)

WORKER = f"inference@{socket.gethostname()}:{os.getpid()}"
STREAM_EXPIRES_SECONDS = 120
CLAIM_SECONDS = 4
RENEW_SECONDS = 1.0
MESSAGE_SECONDS = 0.05  # between two messages of an answer: each costs this process, Redis and the web as much as some tokens do
# For so long a thread may keep the interpreter from others. Python's 5 ms are longer than a forward: the engine would wait as long again after each.
SWITCH_SECONDS = 0.0005
LEAST_LOGPROB = -9999.0  # JSON knows no infinity; OpenAI's figure for what is ruled out

engines = Engines(settings.MAX_ENGINES, settings.ENGINES_BYTES)
_claims: set[str] = set()


@app.task(name="dsportal.answer", ignore_result=True, acks_late=True, reject_on_worker_lost=True)
def answer(*, answer: str, version: str, messages: list[dict], parameters: dict, deadline: float, tenant: str = "") -> None:
    """Answer one question. Delivered again when a worker dies in the middle; then the same text comes again, and the asker
    skips what it has. `deadline` is in seconds since 1970. `tenant`: who asks, for the turns of those who wait."""
    close_old_connections()
    r, stream = connection(), names.STREAM.format(answer=answer)
    claim = names.CLAIM.format(answer=answer)
    while not r.set(claim, WORKER, nx=True, ex=CLAIM_SECONDS):  # another worker is at it: take over only if it dies
        if time.time() > deadline or _ended(stream):
            return
        time.sleep(0.5)
    if time.time() > deadline or _ended(stream) or r.exists(names.CANCEL.format(answer=answer)):
        r.delete(claim)
        return
    _claims.add(claim)
    phases = Phases(version)
    try:
        _publish(answer, stream, version, messages, parameters, deadline, tenant, phases)
    except RedisError:
        raise  # the asker finds nobody at its answer, and asks again
    except Exception:  # whatever it was, somebody waits for a word, and nobody above here gives one
        log.exception("answer %s failed in the worker", answer)
        _add(stream, {"error": f"The answer failed by a fault of the portal's own. The inference worker's log has more, under answer {answer}."})
    finally:
        _claims.discard(claim)
        r.delete(claim)


def _ended(stream: str) -> bool:
    last = connection().xrevrange(stream, count=1)
    return bool(last) and ("end" in last[0][1] or "error" in last[0][1])


def _publish(
    answer: str, stream: str, version: str, messages: list[dict], parameters: dict, deadline: float, tenant: str, phases: Phases
) -> None:  # fmt: skip
    from workers.engine import EngineClosed, EngineError, EngineFull, ParameterRefused, PictureRefused, PromptTooLong

    try:
        began = time.time_ns()
        ends = time.monotonic() + deadline - time.time()
        with engines.lent(version, ends) as engine:
            phases.loaded(began)
            asked = time.time_ns()
            pieces: queue.SimpleQueue = queue.SimpleQueue()
            ticket = engine.submit(messages, _sampling(answer, parameters), on_token=pieces.put, tenant=tenant, deadline=ends)
            sent = scored = 0
            try:
                with cancellations.heard(answer, ticket):
                    for text in _texts(ticket, pieces):
                        scored += _tell(stream, engine, sent, text, scored, ticket.logprobs[scored:])
                        sent += len(text)
            finally:
                ticket.cancel()  # nothing where it is done; else nobody hears it any more
            done = ticket.result()
            ended = phases.answered(asked, done, WORKER)
            if len(done.text) > sent or len(done.logprobs) > scored:
                _tell(stream, engine, sent, done.text[sent:], scored, done.logprobs[scored:])
        end = {
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.tokens,
            "finish_reason": done.finish_reason,
            "reused_tokens": done.reused_tokens,
        }
        _add(stream, {"end": json.dumps(end)})
        phases.delivered(ended)
    except (PromptTooLong, PictureRefused, ParameterRefused) as refusal:
        _add(stream, {"error": str(refusal), "whose": "asker"})
    except (
        NoRoom,
        Problem,
        EngineFull,
        EngineClosed,
        EngineError,
        artifacts.ArtifactDamaged,
        ModelVersion.DoesNotExist,
        OSError,
        ValueError,
    ) as failure:
        log.warning("answer %s failed: %s", answer, failure)
        _add(stream, {"error": str(failure)})


def _sampling(answer: str, parameters: dict):
    """What the engine is asked for, from `Question.parameters`."""
    from workers.engine import SamplingParams

    given = {
        **parameters,
        "stop": tuple(parameters["stop"]),
        "logit_bias": tuple((int(token), bias) for token, bias in parameters["logit_bias"].items()),
    }
    if given["seed"] is None:  # a seed of its own for every answer, the same when it is begun again, so that the text continues
        given["seed"] = zlib.crc32(answer.encode()) & 0x7FFFFFFF
    return SamplingParams(**given)


def _tell(stream: str, engine, sent: int, text: str, scored: int, logprobs) -> int:
    """One message: text after `sent` characters, and, where asked for, what was thought of the tokens after the first `scored`. How many of these."""
    entry = {"at": sent, "text": text}
    if logprobs:

        def spelt(token, logprob, *_):
            return {"bytes": list(engine.spell(token)), "logprob": max(logprob, LEAST_LOGPROB)}

        told = [{**spelt(*of), "top": [spelt(*other) for other in of.top]} for of in logprobs]
        entry |= {"logprobs_at": scored, "logprobs": json.dumps(told)}
    _add(stream, entry)
    return len(logprobs)


def _texts(ticket, pieces: queue.SimpleQueue):
    """Joined pieces as they come, until the answer ends: the first at once, and then whatever came in MESSAGE_SECONDS in one message."""
    ended = threading.Event()
    ticket.when_done(lambda: (ended.set(), pieces.put(None)))
    while not ended.is_set():
        waiting = [pieces.get()]
        while not pieces.empty():
            waiting.append(pieces.get())
        if text := "".join(filter(None, waiting)):
            yield text
            ended.wait(MESSAGE_SECONDS)


def _add(stream: str, entry: dict) -> None:
    pipe = connection().pipeline(transaction=False)
    pipe.xadd(stream, entry)
    pipe.expire(stream, STREAM_EXPIRES_SECONDS)
    pipe.execute()


def _keep_claims() -> None:
    """Those of this worker live as long as it does."""
    while True:
        try:
            for claim in list(_claims):
                connection().expire(claim, CLAIM_SECONDS)
            engines.count()
        except RedisError as error:
            log.warning("the claims of answers cannot be renewed: %s", error)
        time.sleep(RENEW_SECONDS)


@signals.worker_init.connect
def _begin(sender, **_):
    if "inference" in sender.hostname:
        load_first(engines)


@signals.worker_ready.connect
def _ready(sender, **_):
    if "inference" in sender.hostname:
        sys.setswitchinterval(SWITCH_SECONDS)
        keep_presence("inference", WORKER)
        threading.Thread(target=_keep_claims, name="claims", daemon=True).start()
        follow(engines, WORKER)


@signals.worker_shutdown.connect
def _shutdown(**_):
    cancellations.close()
    engines.close()
