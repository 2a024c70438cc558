"""One answer on its way through the `inference` worker: from the line to an engine, and what the engine says to whoever asked."""

import json
import logging
import time
import zlib
from collections.abc import Callable
from typing import Any

from apps import artifacts
from apps.accounts.problems import Problem
from apps.monitoring import names
from apps.registry.models import ModelVersion
from apps.serving.line import Asked
from workers.tasks.engines import Held, NoRoom
from workers.tasks.phases import Phases

log = logging.getLogger(__name__)

LEAST_LOGPROB = -9999.0  # JSON knows no infinity; OpenAI's figure for what is ruled out

Entry = dict[str, str | int]


class Making:
    """`speaks` is called with it whenever there is something to tell, also from an engine's thread: it must be quick."""

    def __init__(self, asked: Asked, speaks: Callable[["Making"], None]):
        self.asked = asked
        self.numbers = [asked.number]  # more than one where it was asked for again, as Redis had lost the first
        self.stream = names.STREAM.format(answer=asked.answer)
        self.held: Held | None = None  # its engine, to be given back
        self.is_over = self.is_told = False  # has ended; and its end was given out to be written
        self.due = 0.0  # when more of its text may be told, of `time.monotonic`
        self.is_cancelled = False
        self._speaks, self._has_spoken = speaks, False
        self.phases = Phases(asked.version, asked.headers)
        self._handed_over = 0  # ns since 1970
        self._ticket: Any = None
        self._pieces: list[str] = []
        self._sent = self._scored = 0  # characters, and tokens with their logprobs, told so far
        self._is_dropped = False
        self._error: Exception | None = None
        self._done: Any = None  # its completion

    # -- towards the engine

    @property
    def ends(self) -> float:
        """Its deadline, of `time.monotonic`."""
        return time.monotonic() + self.asked.deadline - time.time()

    @property
    def is_quick(self) -> bool:
        """To hand over: a picture is to be read, and a form understood, before that."""
        given = self.asked.parameters
        return not (given["schema"] or given["regex"] or any("image" in message for message in self.asked.messages))

    def begin(self, held: Held) -> None:
        """Hand it to the engine, which is owed back. What `Engine.submit` may raise."""
        self.held = held
        self._handed_over = time.time_ns()
        asked = self.asked
        ticket = held.engine.submit(asked.messages, self._sampling(), on_token=self._hear, tenant=asked.tenant, deadline=self.ends)
        self._ticket = ticket
        if self.is_cancelled:  # while it was handed over
            ticket.cancel()
        ticket.when_done(self._end)

    def cancel(self) -> None:
        """Its asker has gone away."""
        self.is_cancelled = True
        if self._ticket:
            self._ticket.cancel()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._end()

    def drop(self) -> None:
        """Nobody waits for it."""
        self._is_dropped = True
        self._end()

    def speak_up(self) -> None:
        """Tell what there is of an answer that is read as a whole: so much is there should it be cut off."""
        if self._pieces and not self._has_spoken:
            self._has_spoken = True
            self._speaks(self)

    def _hear(self, piece: str) -> None:
        self._pieces.append(piece)
        if self.asked.is_streamed:
            self.speak_up()

    def _end(self) -> None:
        self.is_over = True
        self._speaks(self)

    def _sampling(self):
        """What the engine is asked for, from `Question.parameters`."""
        from workers.engine import SamplingParams

        given = self.asked.parameters
        given = {
            **given,
            "stop": tuple(given["stop"]),
            "logit_bias": tuple((int(token), bias) for token, bias in given["logit_bias"].items()),
        }
        if given["seed"] is None:  # a seed of its own for every answer, the same when it is begun again, so that the text continues
            given["seed"] = zlib.crc32(self.asked.answer.encode()) & 0x7FFFFFFF
        return SamplingParams(**given)

    # -- towards the asker

    def next_entry(self) -> Entry | None:
        """What its stream gets now: text after so many characters, and, where asked for, what was thought of its tokens. None where nothing is new; empty
        where nobody waits for it."""
        self._has_spoken = False
        if self.is_told:
            return None
        if self.is_over:
            self.is_told = True
            return {} if self._is_dropped else self._last_entry()
        try:
            return self._next_piece()
        except Exception as error:  # noqa: BLE001 — as at its end
            self.cancel()
            self._error, self.is_told = error, True
            return self._last_entry()

    def _next_piece(self) -> Entry | None:
        count = len(self._pieces)
        text = "".join(self._pieces[:count])
        del self._pieces[:count]  # the engine may have added some at the end meanwhile
        return self._piece(text, self._ticket.logprobs[self._scored :]) if text else None

    def _last_entry(self) -> Entry:
        try:
            if self._error:
                raise self._error
            done = self._done = self._ticket.result()
        except Exception as error:  # noqa: BLE001 — whatever it was, somebody waits for a word, and nobody above here gives one
            return _told(error, self.asked.answer)
        first = self._handed_over + round((done.waited_seconds + done.prefill_seconds) * 1e9)
        end = {
            "prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens, "finish_reason": done.finish_reason,
            "reused_tokens": done.reused_tokens, "first_token_at": first,
        }  # fmt: skip
        return {**self._piece(done.text[self._sent :], done.logprobs[self._scored :]), "end": json.dumps(end)}

    def _piece(self, text: str, logprobs) -> Entry:
        entry: Entry = {"at": self._sent, "text": text}
        if logprobs:
            entry |= {"logprobs_at": self._scored, "logprobs": json.dumps([self._spelt_with_others(of) for of in logprobs])}
        self._sent += len(text)
        self._scored += len(logprobs)
        return entry

    def _spelt_with_others(self, of) -> dict:
        return {**self._spelt(*of), "top": [self._spelt(*other) for other in of.top]}

    def _spelt(self, token: int, logprob: float, *_) -> dict:
        assert self.held is not None
        return {"bytes": list(self.held.engine.spell(token)), "logprob": max(logprob, LEAST_LOGPROB)}

    def tell_phases(self, worker: str) -> None:
        """Once its end is told."""
        if self._done:
            self.phases.delivered(self.phases.answered(self._handed_over, self._done, worker))


def askers_mistake(error: Exception) -> Entry:
    """What its asker is told of it (`refusal_of` in apps/serving/services.py); empty where it is not the asker's."""
    from workers.engine import ParameterRefused, PictureRefused, PromptTooLong

    if isinstance(error, PromptTooLong):
        return {"error": str(error), "whose": "asker", "field": "prompt", "is_too_long": 1}
    if isinstance(error, ParameterRefused | PictureRefused):
        return {"error": str(error), "whose": "asker", "field": error.parameter if isinstance(error, ParameterRefused) else "image"}
    return {}


def _told(error: Exception, answer: str) -> Entry:
    from workers.engine import EngineError

    if mistake := askers_mistake(error):
        return mistake
    if isinstance(error, NoRoom | Problem | EngineError | artifacts.ArtifactDamaged | ModelVersion.DoesNotExist | OSError | ValueError):
        log.warning("answer %s failed: %s", answer, error)
        return {"error": str(error)}
    log.error("answer %s failed in the worker", answer, exc_info=error)
    return {"error": f"The answer failed by a fault of the portal's own. The inference worker's log has more, under answer {answer}."}
