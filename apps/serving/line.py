"""The line in which questions wait for an inference worker: a Redis stream that the workers read as one group, each question by one of them.

A question leaves the line with the end of its answer, by the same transaction. Until then it is noted there as its worker's, who says every second
that it is still at it. What nobody has said so of for a while is taken over by another worker, which begins it again.
"""

import logging
from collections.abc import Collection
from typing import Any, NamedTuple

import orjson
from redis import ResponseError
from redis.client import Pipeline

from apps.monitoring import names
from apps.redis import connection

log = logging.getLogger(__name__)

GROUP = "inference"
MOST = 10_000  # of those that nobody takes, the oldest are dropped: their askers have long been told that no worker is there
LOST_SECONDS = 4.0  # without a word from its worker
FORGOTTEN_SECONDS = 60.0


class Asked(NamedTuple):
    """One question on its way. `number`: where it stands in the line."""

    answer: str
    version: str
    messages: list[dict]
    parameters: dict  # `Question.parameters`
    deadline: float  # in seconds since 1970
    tenant: str  # who asks, for the turns of those who wait in the engine
    is_streamed: bool  # else nobody reads it before it is whole
    headers: dict[str, str]  # whose request it is a part of
    number: str = ""


# -- the asker's side


def stand(asked: Asked) -> str:
    """Its number."""
    return connection().xadd(names.ASKED, {"question": packed(asked)}, maxlen=MOST, approximate=True)


def packed(asked: Asked) -> bytes:
    """As an entry of the stream has it."""
    return orjson.dumps(asked[:-1])


def is_there(number: str) -> bool:
    """In the line, or at a worker."""
    return bool(connection().xrange(names.ASKED, number, number))


# -- the worker's side


class Window:
    """Where one worker takes questions from the line. May be called from any thread."""

    def __init__(self, worker: str):
        self._worker, self._line = worker, names.ASKED

    def open(self) -> None:
        """Begin to take part; forget workers that are long gone and have nothing."""
        r = connection()
        try:
            r.xgroup_create(self._line, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        for other in r.xinfo_consumers(self._line, GROUP):
            if not other["pending"] and other["idle"] > FORGOTTEN_SECONDS * 1000:
                r.xgroup_delconsumer(self._line, GROUP, other["name"])

    def take(self, most: int, patience_seconds: float) -> list[Asked]:
        """Up to so many, as soon as there is one; none after `patience_seconds`."""
        try:
            found = connection().xreadgroup(GROUP, self._worker, {self._line: ">"}, count=most, block=round(patience_seconds * 1000))
        except ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            self.open()  # Redis was emptied, maybe in the middle of this
            return []
        return self._readable(found[0][1]) if found else []

    def keep(self, numbers: Collection[str]) -> None:
        """Say that it is still at these."""
        if numbers:
            connection().xclaim(self._line, GROUP, self._worker, 0, list(numbers), justid=True)

    def take_over(self, most: int) -> list[Asked]:
        """Up to so many of those whose workers are silent."""
        r, silent_ms = connection(), round(LOST_SECONDS * 1000)
        silent = r.xpending_range(self._line, GROUP, "-", "+", most, idle=silent_ms) if r.exists(self._line) else []
        if not silent:
            return []
        numbers = r.xclaim(self._line, GROUP, self._worker, silent_ms, [entry["message_id"] for entry in silent], justid=True)
        found = [entry for number in numbers for entry in r.xrange(self._line, number, number)]
        if gone := set(numbers) - {number for number, _ in found}:  # whose askers have left
            r.xack(self._line, GROUP, *gone)
        return self._readable(found)

    def done(self, pipe: Pipeline, numbers: Collection[str]) -> None:
        """These are answered."""
        pipe.xack(self._line, GROUP, *numbers)
        pipe.xdel(self._line, *numbers)

    def close(self) -> None:
        """Nothing of the line is this worker's any more."""
        connection().xgroup_delconsumer(self._line, GROUP, self._worker)

    def _readable(self, entries: list[tuple[str, dict[str, Any]]]) -> list[Asked]:
        """An entry that is no question, of another release say, must not hold up those behind it."""
        found = []
        for number, entry in entries:
            try:
                found.append(Asked(*orjson.loads(entry["question"]), number))
            except (ValueError, TypeError, KeyError):
                log.exception("an entry of the line is no question: %s", str(entry)[:1000])
                pipe = connection().pipeline()
                self.done(pipe, [number])
                pipe.execute()
        return found
