"""Answering: cache, queue, engine, and the row that remembers the answer."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from django.conf import settings
from django.db import transaction
from django.db.models import Model
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.accounts.problems import QUEUE_OUTAGES, Busy, Problem, TimedOut, TooLong, Unavailable, queue_outage
from apps.accounts.quotas import Quota
from apps.database import release
from apps.ids import new_id
from apps.monitoring import names, recorder
from apps.monitoring.recorder import cache_lookups_total
from apps.monitoring.selectors import workers
from apps.monitoring.traces.journey import Journey, current
from apps.redis import Ledger, connection
from apps.serving import answer_log, cache, flight, line
from apps.serving.context import fitted
from apps.serving.models import Answer, Conversation
from apps.serving.pictures import for_version, picture_of
from apps.serving.questions import Question, prompt_key
from apps.serving.routing import Route, remembered_route, route
from apps.serving.turns import turns

log = logging.getLogger(__name__)

POLL_MS = 1000
CANCEL_SECONDS = 120
WHOLE = ("stop", "length")  # how an answer ends that was not cut off
LOST_SECONDS = 4.0  # without a word from a worker, after which an asker looks where the message is


def stop(answer: str) -> None:
    """Nobody will read it. A worker at it hears so now; one that begins later finds the key."""
    pipe = connection().pipeline(transaction=False)
    pipe.set(names.CANCEL.format(answer=answer), 1, ex=CANCEL_SECONDS)
    pipe.publish(names.CANCELLED, answer)
    pipe.execute()


def refusal_of(found: dict) -> Problem:
    """What a worker says in place of an answer."""
    if found.get("whose") != "asker":
        return Unavailable(found["error"])
    return (TooLong if found.get("is_too_long") else Problem)(found["error"], field=found.get("field") or None)


def outcome_of(problem: Problem) -> str:
    """Of a request that ended so, for the counters: whoever asks for what cannot be had is no fault of the portal's."""
    return recorder.BUSY if isinstance(problem, Busy) else recorder.INVALID if problem.status < 500 else "error"


def _late() -> TimedOut:
    return TimedOut(_("No complete answer within %(n)s s. Ask again, or for fewer tokens.") % {"n": f"{settings.ANSWER_TIMEOUT_SECONDS:.0f}"})


def sent_with(journey: Journey, channel: str) -> dict[str, str]:
    """Headers of a message: whose request it is a part of, of which kind, and when it was sent, in ns."""
    return {**journey.carrier(), "route": channel, "tenant": journey.tenant, "sent": str(time.time_ns())}


@dataclass
class Pending:
    """One answer on its way: iterate `pieces()` for its text as it comes; then `row` is written."""

    question: Question
    route: Route
    user: User | None
    channel: str
    conversation: Conversation | None = None
    quota: Quota | None = None
    id: str = field(default_factory=new_id)
    began: float = field(default_factory=lambda: current().came)  # with its request, of `time.monotonic`
    text: str = ""
    cached: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"
    reused_tokens: int = 0  # of the prompt, whose keys and values the engine had from an earlier turn
    logprobs: list[dict] = field(default_factory=list)  # of each token: its bytes, its logprob, and those of the likeliest as `top`
    first_token_ms: float | None = None
    row: dict[str, Any] | None = None  # its columns; no `Answer`, which takes as long to make as all of them to write
    journey: Journey = field(default_factory=current)
    is_streamed: bool = True  # else it is read as a whole
    _key: str = ""  # of the same question in the cache, and in flight
    _number: str = ""  # where it stands in the line, once it does
    _failed_as: str = ""  # for the counters

    @property
    def elapsed_ms(self) -> float:
        return (time.monotonic() - self.began) * 1000

    @property
    def latency_ms(self) -> float:
        """Of the whole, once it is remembered."""
        assert self.row is not None
        return self.row["latency_ms"]

    def pieces(self) -> Iterator[str]:
        """The answer's text, piece by piece. Closing the iterator early stops the work and remembers what came."""
        if self.row is not None:  # it was known, and is written
            yield self.text
            return
        status, error = Answer.Status.OK, ""
        try:
            yield from self._from_cache() or self._from_engine()
        except GeneratorExit:
            status = Answer.Status.CANCELLED
            stop(self.id)
            raise
        except Problem as problem:
            status, error = Answer.Status.ERROR, problem.detail
            self._failed_as = outcome_of(problem)
            self.journey.failure = problem.detail
            raise
        except QUEUE_OUTAGES as lost:
            status, error = Answer.Status.ERROR, "The queue could not be reached"
            self.journey.failure = error
            raise queue_outage() from lost
        finally:
            with self.journey.phase("database", what="answer"):
                self._remember(status, error)

    def whole(self) -> str:
        self.is_streamed = False
        for _piece in self.pieces():
            pass
        return self.text

    def answer_at_once(self) -> bool:
        """From what this process has, with the request, its tokens and all that is remembered of it by one command to Redis, which does nothing of that
        once something else serves. False where that is so, or the answer is not here. Busy, RedisError."""
        key = cache.key_of(version=self.route.version.pk, messages=self.question.messages, parameters=self.question.parameters)
        known = cache.near.get(key, self.route.epoch)
        if known is None:
            return False
        with self.journey.phase("cache"):
            self._take(orjson.loads(known))
        with self.journey.phase("database", what="answer"):
            row, ledger = self._row(Answer.Status.OK), Ledger()
            answer_log.append(row, ledger)
            if not self.quota.take_and_write(ledger, tokens=self.prompt_tokens + self.completion_tokens, epoch=self.route.epoch):
                return False
        self.row = row
        cache_lookups_total.labels("hit").inc()
        self._tell(Answer.Status.OK)
        return True

    def _from_cache(self) -> list[str] | None:
        if not self.question.is_deterministic:
            return None
        self._key = cache.key_of(version=self.route.version.pk, messages=self.question.messages, parameters=self.question.parameters)
        with self.journey.phase("cache"):
            found = cache.get(self._key, self.route.epoch)
        if found is None:
            return None
        self._take(found)
        return [self.text]

    def _take(self, found: dict) -> None:
        """The answer as it was cached."""
        self.cached, self.text = True, found["text"]
        self.prompt_tokens, self.completion_tokens = found["prompt_tokens"], found["completion_tokens"]
        self.finish_reason, self.logprobs = found["finish_reason"], found.get("logprobs", [])
        self.first_token_ms = self.elapsed_ms

    def _from_engine(self) -> Iterator[str]:
        """One computation for all who ask the same at the same time: the first one's, whose stream the others read too."""
        turns.give_up()
        release()
        while not self._number and (leader := self._enter()) != self.id:
            try:
                with self.journey.phase("shared", answer=leader):
                    yield from self._follow(leader)
            except flight.LeaderLost:  # it was stopped: one of those who read it goes on, and skips what it has
                flight.leave(leader, key=self._key)
            else:
                cache_lookups_total.labels("joined").inc()
                return
        try:
            yield from self._follow(self.id)
            if self._key:
                kept = {name: getattr(self, name) for name in ("text", "prompt_tokens", "completion_tokens", "finish_reason", "logprobs")}
                cache.put(self._key, kept, self.route.epoch)
        finally:
            self._leave()

    def send_ahead(self) -> None:
        """Let the work begin before `pieces` are read, so that several answers to one question are made at once. Busy.

        Answers that are always the same wait for their turn: the second comes from the cache.
        """
        if not self.question.is_deterministic:
            with suppress(*QUEUE_OUTAGES):  # reading the pieces tries again, and says what is wrong
                self._enter()

    def cancel(self) -> None:
        """Stop work that was sent ahead and whose pieces nobody will read."""
        stop(self.id)
        self._leave()

    def _enter(self) -> str:
        """Have it made, or find the answer that is being made to the same question: which of them. Busy."""
        leader, self._number = flight.enter(self.id, key=self._key, question=self._asked(time.time()))
        return leader

    def _leave(self) -> None:
        flight.leave(self.id, key=self._key, number=self._number)

    def _asked(self, now: float) -> line.Asked:
        return line.Asked(
            answer=self.id, version=self.route.version.pk, messages=self.question.messages, parameters=self.question.parameters,
            deadline=now + settings.ANSWER_TIMEOUT_SECONDS, tenant=str(self.user.pk) if self.user and self.user.pk else "",
            is_streamed=self.is_streamed, headers=sent_with(self.journey, self.channel),
        )  # fmt: skip

    def _follow(self, answer: str) -> Iterator[str]:
        """Pieces from an answer's stream, one's own or that of whoever asked the same first. They are numbered by the characters
        before them, so that an answer that is begun again after a worker's death continues where it stopped."""
        stream, last = names.STREAM.format(answer=answer), "0"
        deadline = self.began + settings.ANSWER_TIMEOUT_SECONDS
        last_sign = last_sent = time.monotonic()
        while True:
            found = connection().xread({stream: last}, block=POLL_MS, count=200)
            now = time.monotonic()
            if now > deadline:
                stop(self.id)
                raise _late()
            if not found:
                last_sign = now if workers("inference") else last_sign
                if now - last_sign > settings.NO_WORKER_SECONDS:
                    raise Unavailable(_("No inference worker is running. Its log says why; it is restarted by itself."))
                if answer != self.id and not flight.leads(self._key, answer):
                    raise flight.LeaderLost
                if now - last_sent > LOST_SECONDS and answer == self.id and self._is_lost():
                    log.warning("answer %s was lost with its Redis; it is asked for again", self.id)
                    self._number = line.stand(self._asked(time.time() - (now - self.began)))
                    last_sent = now
                yield ""  # so that a stream writes a sign of life, and notices that its reader went away
                continue
            last_sign = now
            for last, entry in found[0][1]:  # noqa: B007 — `last` is where the next read begins
                if piece := self._read(entry, answer):
                    yield piece
                if "end" in entry:
                    return

    def _read(self, entry: dict, answer: str) -> str:
        """What an entry of the stream adds to the text; its last one is remembered."""
        end = json.loads(entry.get("end", "{}"))
        failed = "error" in entry and entry.get("whose") != "asker"
        cut = end.get("finish_reason", "stop") not in WHOLE
        if answer != self.id and (failed or cut):
            raise flight.LeaderLost  # what stopped another's answer need not stop this one
        if "error" in entry:
            raise refusal_of(entry)
        piece = entry.get("text", "")[max(0, len(self.text) - int(entry.get("at", len(self.text)))) :]
        if piece and self.first_token_ms is None and self.is_streamed:
            self.first_token_ms = self.elapsed_ms
        if first := end.pop("first_token_at", None):  # the worker's word, where it was not told when it came
            self.first_token_ms = self.first_token_ms or max(0.0, self.elapsed_ms - (time.time_ns() - first) / 1e6)
        self.text += piece
        self.logprobs += json.loads(entry.get("logprobs", "[]"))[max(0, len(self.logprobs) - int(entry.get("logprobs_at", len(self.logprobs)))) :]
        for name, value in end.items():
            setattr(self, name, value)
        if cut:
            raise _late() if self.finish_reason == "timeout" else Unavailable(_("The answer was stopped before it was complete. Ask again."))
        return piece

    def _is_lost(self) -> bool:
        """A worker lives, and the question is not in the line: it went with a Redis that died. Asking twice by mistake is harmless."""
        return not line.is_there(self._number) and bool(workers("inference"))

    def _remember(self, status: str, error: str) -> None:
        self._tell(status)
        self.row, ledger = self._row(status, error), Ledger()
        answer_log.append(self.row, ledger)
        if self.quota:
            self.quota.spend_tokens(self.prompt_tokens + self.completion_tokens, ledger)
        try:
            ledger.write()
        except QUEUE_OUTAGES as lost:  # the answer is there; it may be missing from charts and quotas, but not from the log
            log.warning("answer %s is written to the database at once: %s", self.id, lost)
            answer_log.write([Answer(**self.row)])

    def _row(self, status: str, error: str = "") -> dict[str, Any]:
        return {
            "id": self.id, "conversation_id": _key(self.conversation), "model_version_id": self.route.version.pk,
            "experiment_id": _key(self.route.experiment), "arm": self.route.arm, "user_id": _key(self.user), "route": self.channel,
            "prompt": self.question.prompt[:8000], "prompt_key": prompt_key(self.question.prompt, picture_of(self.question.messages)),
            "messages": self.question.messages, "parameters": self.question.parameters, "text": self.text, "status": status,
            "error": error[:300], "cached": self.cached, "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "latency_ms": self.elapsed_ms, "first_token_ms": self.first_token_ms, "created_at": timezone.now(),
        }  # fmt: skip

    def _tell(self, status: str) -> None:
        """Its journey, which counts it."""
        self.journey.answered(self.id, self.route.version, self.channel)
        self.journey.observe(
            version=self.route.version.pk, route=self.channel, outcome=self._failed_as or status, cached=self.cached,
            prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens, first_token_ms=self.first_token_ms,
        )  # fmt: skip


def _key(row: Model | None) -> Any:
    return row.pk if row else None


def ask(
    *, question: Question, user: User | None, channel: str, version: str | None = None, conversation: Conversation | None = None,
    subject: str | None = None, trim: bool = False, quota: Quota | None = None,
) -> Pending:  # fmt: skip
    """Route the question. The work begins when the answer's pieces are read. `trim`: leave out the oldest turns that do not fit.

    With a quota the request is taken; an answer that is known here is complete then."""
    who = subject or (conversation.pk if conversation else "") or (str(user.pk) if user and user.pk else new_id())
    if quota:
        # Whether a version sees pictures is not asked of one that may not be live any more.
        may_be_known = question.is_deterministic and not trim and not any("image" in message for message in question.messages)
        if may_be_known and (known := remembered_route(asked=version, subject=who)):
            pending = Pending(question=question, route=known, user=user, channel=channel, conversation=conversation, quota=quota)
            if pending.answer_at_once():
                return pending
        quota.take_request()
    with current().phase("database", what="version"):
        way = route(asked=version, subject=who, epoch=quota.epoch if quota else None)
    messages = for_version(question.messages, way.version, forgiving=trim)
    if trim:
        messages = fitted(messages, way.version, question.max_tokens)
    if messages is not question.messages:
        question = replace(question, messages=messages)
    return Pending(question=question, route=way, user=user, channel=channel, conversation=conversation, quota=quota)


@transaction.atomic
def start_conversation(*, user: User | None, first_question: str) -> Conversation:
    return Conversation.objects.create(user=user, title=first_question.strip()[:120] or "…")
