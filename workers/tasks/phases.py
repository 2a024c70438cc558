"""What a worker tells of the request that its work is a part of: how long it waited, was read, and was answered."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from apps.monitoring import recorder
from apps.monitoring.traces import telling

if TYPE_CHECKING:  # jobs and beat read this file too, and need no engine
    from workers.engine import Completion

LOAD_SECONDS = 0.005  # what takes less is no loading: the engine was there


class Phases:
    """Made when the work begins, which ends its time in the queue. `headers`: what came with the message."""

    def __init__(self, version: str, headers: Mapping[str, str]) -> None:
        self._parent = telling.taken_up(headers)
        self._whose = {"version": version, "route": headers.get("route", ""), "tenant": headers.get("tenant", "none")}
        now = time.time_ns()
        self.tell("queue", int(headers.get("sent", now)), now, where="broker")

    def tell(self, name: str, start: int, end: int, **about: str | float | bool) -> None:
        """Times in ns since 1970."""
        recorder.observe_phases(**self._whose, phases=[(name, (end - start) / 1e9)])
        if self._parent is not None:
            telling.tell(name, start, end, self._parent, **about)

    def loaded(self, start: int) -> None:
        if (end := time.time_ns()) - start > LOAD_SECONDS * 1e9:
            self.tell("load", start, end)

    def answered(self, asked: int, done: "Completion", worker: str) -> int:
        """`asked`: when the engine was. When it had the last token."""
        began = asked + round(done.waited_seconds * 1e9)
        first = began + round(done.prefill_seconds * 1e9)
        end = began + round(done.seconds * 1e9)
        self.tell("queue", asked, began, where="engine")
        self.tell("prefill", began, first, tokens=done.prompt_tokens, reused=done.reused_tokens, worker=worker)
        if done.tokens:
            self.tell("decode", first, end, tokens=done.tokens, worker=worker)
        return end

    def delivered(self, ended: int) -> None:
        self.tell("deliver", ended, time.time_ns())
