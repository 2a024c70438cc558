"""The engine whose model is another server's: the interface of `workers.engine.Engine`, over HTTP.

One thread runs an event loop with a task for each answer. Cancelling a ticket cancels its task, which closes the connection: that is how
a server notices that nobody reads any more.
"""

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pydantic import ValidationError

from workers.engine import Completion, EngineClosed, EngineError, EngineFull, EngineStats, SamplingParams, Ticket, UnusableModel
from workers.engine.sequence import OnToken
from workers.engine.waiting import WaitingLine
from workers.upstream.guard import TIMEOUT, Guard, Health, OutOfOrder, Unanswered, Unreached
from workers.upstream.spec import UPSTREAM_FILE, UpstreamSpec
from workers.upstream.wire import Answer, BrokenOff, Spelling, request_of

log = logging.getLogger(__name__)

CONCURRENCY = 64  # answers at once: the server has its own line, but chat should not stand behind a batch in it
CLOSING_SECONDS = 2.0
LONGEST_SECONDS = 300.0  # for one answer: who waits in a batch has no deadline, and one that drips for ever would hold up all jobs
PATIENCE_SECONDS, PAUSE_SECONDS = 120.0, 1.0  # of batches, while the server is away
Message = Mapping[str, str]


class RemoteTicket(Ticket):
    """A ticket whose cancellation is heard at once."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cancel: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        super().cancel()
        if not self.done():
            self.on_cancel()


@dataclass(eq=False)
class Asked:
    """A question in line, or on its way."""

    work: Callable[["Asked"], Awaitable[Completion]]
    body: dict[str, Any]
    tenant: str
    is_batch: bool
    deadline: float
    on_token: OnToken | None = None
    ticket: RemoteTicket = field(default_factory=RemoteTicket)
    answer: Answer = field(default_factory=Answer)
    submitted: float = field(default_factory=time.monotonic)
    began: float = math.nan  # when its request was sent
    first: float = math.nan  # when its first piece came
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None


class UpstreamEngine:
    """All public methods may be called from any thread."""

    def __init__(self, spec: UpstreamSpec, *, concurrency: int = CONCURRENCY, max_waiting: int = 256):
        self._spec = spec
        self._spelling = Spelling()
        self._concurrency, self._most = concurrency, concurrency + max_waiting
        self._present = 0  # in line or on the way
        self._prompt_tokens = self._completion_tokens = self._reused_tokens = self._answers = 0
        self._waiting = WaitingLine[Asked]()
        self._running: set[Asked] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        # No redirects, and no proxy or password from the environment: the settings say where questions may go.
        self._client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_connections=None, keepalive_expiry=30))
        self._guard = Guard(spec, self._client)
        self._thread = threading.Thread(target=self._run_loop, name="upstream", daemon=True)
        self._thread.start()

    # -- the asker's side

    def submit(
        self, messages: Many[Message], sampling: SamplingParams, on_token: OnToken | None = None, *, tenant: str = "", is_batch: bool = False,
        deadline: float = math.inf,
    ) -> Ticket:  # fmt: skip
        """As `Engine.submit`; what the upstream refuses is told by the ticket's result. ParameterRefused, EngineFull, EngineClosed."""
        body = request_of(self._spec.model, messages, sampling)
        return self._ask(Asked(self._answer, body, tenant, is_batch, deadline, on_token), self._most)

    def embed(self, text: str, *, tenant: str = "", deadline: float = math.inf) -> Ticket:
        """As `Engine.embed`: of length 1, whatever the upstream's has."""
        body = {"model": self._spec.model, "input": text, "encoding_format": "float"}
        return self._ask(Asked(self._embedding, body, tenant, False, deadline), self._most)

    def generate_all(self, prompts: Iterable[Many[Message]], max_tokens: int, temperature: float = 0.0) -> list[Completion]:
        """Answers in the order of `prompts`, however many there are. EngineError where one cannot be had: a figure must not count it as a bad answer."""
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
        bodies = [request_of(self._spec.model, prompt, sampling) for prompt in prompts]
        tickets = [self._ask(Asked(self._answer, body, "", True, math.inf), math.inf) for body in bodies]
        return [ticket.result() for ticket in tickets]

    def _ask(self, asked: Asked, most: float) -> Ticket:
        asked.ticket.on_cancel = lambda: self._call(self._drop, asked)
        with self._lock:
            if self._closed:
                raise EngineClosed("The engine was closed; ask again.")
            if self._present >= most:
                raise EngineFull(f"{self._present} questions wait for the upstream already; ask again in a moment.")
            self._present += 1
        self._call(self._enter, asked)
        return asked.ticket

    def _call(self, function: Callable[[Asked], None], asked: Asked) -> None:
        try:
            self._loop.call_soon_threadsafe(function, asked)
        except RuntimeError:  # the loop was closed in between
            asked.ticket.resolve(_closed())

    def spell(self, token: int) -> bytes:
        return self._spelling.bytes_of(token)

    def health(self) -> Health:
        return self._guard.health

    def stats(self) -> EngineStats:
        """`steps`: answers, as the upstream's forwards are not known. Its memory is its own."""
        running = len(self._running)
        return EngineStats(
            running, max(0, self._present - running), self._concurrency, self._answers, self._prompt_tokens, self._completion_tokens,
            self._reused_tokens, cache_used_bytes=0, cache_total_bytes=0, preemptions=0,
        )  # fmt: skip

    def close(self) -> None:
        """End: whoever waits hears EngineClosed, and the connections are closed. A second call does nothing."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the event loop's thread

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        checking = self._loop.create_task(self._guard.check_forever())
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._abandon(checking))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(_until_nothing_is_pending())
            self._loop.close()

    async def _abandon(self, checking: asyncio.Task[None]) -> None:
        while len(self._waiting):
            self._shut_out(self._waiting.pop())
        for asked in self._running:
            asked.ticket.resolve(_closed())
        tasks = [checking, *(asked.task for asked in self._running if asked.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _shut_out(self, asked: Asked) -> None:
        asked.ticket.resolve(_closed())
        self._leave(asked)

    def _enter(self, asked: Asked) -> None:
        if self._closed:  # since it was asked
            self._shut_out(asked)
            return
        if asked.ticket.is_cancelled:
            self._give_up(asked)
            return
        if asked.deadline < math.inf:  # the loop's clock is time.monotonic
            asked.timer = self._loop.call_at(asked.deadline, self._drop, asked)
        self._waiting.add(asked)
        self._let_in()

    def _let_in(self) -> None:
        while len(self._waiting) and len(self._running) < self._concurrency:
            asked = self._waiting.pop()
            asked.began = time.monotonic()
            self._running.add(asked)
            asked.task = self._loop.create_task(self._run(asked))

    def _drop(self, asked: Asked) -> None:
        """Its asker has gone away, or its time is up."""
        if asked.ticket.done():
            return
        if asked in self._running:
            assert asked.task is not None
            asked.task.cancel()
        elif asked in self._waiting:
            self._waiting.remove(asked)
            self._give_up(asked)

    def _give_up(self, asked: Asked) -> None:
        asked.ticket.resolve(self._so_far(asked))
        self._leave(asked)

    def _so_far(self, asked: Asked) -> Completion:
        answer, now = asked.answer, time.monotonic()
        seconds = 0.0 if math.isnan(asked.began) else now - asked.began
        return Completion(answer.text, answer.pieces, answer.prompt_tokens, seconds, "timeout" if now >= asked.deadline else "cancelled")

    def _leave(self, asked: Asked) -> None:
        if asked.timer:
            asked.timer.cancel()
        with self._lock:
            self._present -= 1

    async def _run(self, asked: Asked) -> None:
        try:
            completion = await self._ask_until_answered(asked)
            self._count(completion)
            asked.ticket.resolve(completion)
        except asyncio.CancelledError:
            asked.ticket.resolve(self._so_far(asked))
        except EngineError as error:
            asked.ticket.resolve(error)
        except Exception as error:
            # Whatever it is (the asker's own code, a library's fault), whoever waits must hear of it.
            log.exception("an answer of the upstream %s failed", self._spec.place)
            asked.ticket.resolve(EngineError(f"The answer failed: {type(error).__name__}: {error}."))
        finally:
            self._running.discard(asked)
            self._leave(asked)
            self._let_in()

    async def _ask_until_answered(self, asked: Asked) -> Completion:
        """For whom nobody waits there is time until the server is back."""
        patience = time.monotonic() + (PATIENCE_SECONDS if asked.is_batch else 0.0)
        while True:
            try:
                with self._guard.watched():
                    completion: Completion = await self._guard.retries()(asked.work, asked)
                    return completion
            except Unreached as failure:
                if isinstance(failure, Unanswered) or time.monotonic() >= patience:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)

    def _count(self, completion: Completion) -> None:
        self._answers += 1
        self._prompt_tokens += completion.prompt_tokens
        self._completion_tokens += completion.tokens
        self._reused_tokens += completion.reused_tokens

    async def _answer(self, asked: Asked) -> Completion:
        answer = asked.answer
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._stream(asked)
        except TimeoutError as error:
            raise OutOfOrder(f"The upstream {self._spec.place} was still at one answer after {LONGEST_SECONDS:g} s.") from error
        except (httpx.TransportError, BrokenOff) as error:
            if answer.pieces or isinstance(error, httpx.ReadTimeout):
                why = f"Nothing came for {TIMEOUT.read:g} s." if isinstance(error, httpx.ReadTimeout) else error
                raise BrokenOff(f"The upstream {self._spec.place} broke off in the middle of its answer. {why}".rstrip()) from error
            if isinstance(error, BrokenOff):
                raise Unanswered(
                    f"The upstream {self._spec.place} gives no answer to this question, which may be too long for it. {error}"
                ) from error
            raise Unreached(str(error) or type(error).__name__) from error
        now = time.monotonic()
        return Completion(
            answer.text, answer.completion_tokens or answer.pieces, answer.prompt_tokens, now - asked.began,
            "length" if answer.finish_reason == "length" else "stop", answer.reused_tokens, tuple(asked.ticket.logprobs),
            waited_seconds=asked.began - asked.submitted, prefill_seconds=(now if math.isnan(asked.first) else asked.first) - asked.began,
        )  # fmt: skip

    async def _stream(self, asked: Asked) -> None:
        """BrokenOff where the stream ends without saying so."""
        async with self._guard.response("/chat/completions", asked.body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data:"):  # a comment, which is a sign of life, or another field of an event
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                self._take(asked, data)
        if asked.answer.finish_reason is None:
            raise BrokenOff("Its stream ended without an end.")

    def _take(self, asked: Asked, data: str) -> None:
        try:
            event = json.loads(data)
        except ValueError as error:
            raise BrokenOff(f"It sent what is no JSON: {data[:80]}") from error
        piece = asked.answer.take(event)
        if asked.answer.pieces == 1 and math.isnan(asked.first):
            asked.first = time.monotonic()
        asked.ticket.logprobs += self._spelling.read(event)  # ahead of the text that is told
        if piece and asked.on_token and not asked.ticket.is_cancelled:
            asked.on_token(piece)

    async def _embedding(self, asked: Asked) -> Completion:
        try:
            async with self._guard.response("/embeddings", asked.body) as response:
                told = json.loads(await response.aread())
            vector = np.asarray(told["data"][0]["embedding"], np.float32)
            tokens = int((told.get("usage") or {}).get("prompt_tokens") or 0)
        except httpx.TransportError as error:
            raise Unreached(str(error) or type(error).__name__) from error
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise BrokenOff(f"The upstream {self._spec.place} sent no embedding ({type(error).__name__}: {error}).") from error
        asked.ticket.embedding = vector / (np.linalg.norm(vector) or 1.0)
        return Completion("", 0, tokens, time.monotonic() - asked.began, "stop")


async def _until_nothing_is_pending() -> None:
    """What httpx was reading for those who left is closed by tasks of its own, which begin a moment later; one that the loop leaves behind is told as destroyed."""
    await asyncio.sleep(0)
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSING_SECONDS):
            while left := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(left)
                await asyncio.sleep(0)


def _closed() -> EngineClosed:
    return EngineClosed("The engine was closed before the answer was complete; ask again.")


def open_upstream(folder: Path, *, max_waiting: int = 256) -> UpstreamEngine:
    """UnusableModel where the file does not say where to ask."""
    try:
        spec = UpstreamSpec.model_validate_json((folder / UPSTREAM_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise UnusableModel(f"The {UPSTREAM_FILE} of {folder.name} does not say where to ask: {error}.") from error
    return UpstreamEngine(spec, max_waiting=max_waiting)
