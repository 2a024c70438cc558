"""Between us and an upstream: what is tried again, when it is left alone, and what is known of it.

Only what has brought nothing yet is tried again. Three questions in a row that failed all the same, or three checks, open the circuit: then who asks is told so at once, instead
of waiting for a server that is down, and the health check alone tries it until it answers. The two are counted apart: a server may list its models and answer no question.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from pybreaker import STATE_CLOSED, STATE_OPEN, CircuitBreaker, CircuitBreakerError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from workers.engine import EngineError, EngineFull, ParameterRefused
from workers.upstream.check import CannotBeUsed, headers_of, reason_of
from workers.upstream.spec import UpstreamSpec
from workers.upstream.wire import BrokenOff, detail_of

FAILURES_UNTIL_OPEN = 3
OPEN_SECONDS = 4.0  # then the next health check is the trial
HEALTH_SECONDS = 2.0
HEALTH_TIMEOUT_SECONDS = 3.0
ATTEMPTS = 4
LONGEST_PAUSE_SECONDS = 2.0
# To connect; between two signs of life; to send. How long the whole may take is the asker's deadline.
TIMEOUT = httpx.Timeout(connect=5.0, read=30.0, write=10.0, pool=None)
_BUSY, _REFUSED = 429, (401, 403)
_FAILED, _NOT_NOW = 500, (502, 503, 504)
_ELSEWHERE = (301, 302, 303, 307, 308, 404)  # the address or the model, which whoever asks cannot mend


class Unreached(EngineError):
    """Nothing has come yet, so that it may be tried again."""

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class Busy(Unreached, EngineFull):
    """It lives, and takes no more at the moment."""


class Unanswered(Unreached):
    """It lives, and gives no answer to this question. That says nothing of the next one: some servers fail where another would refuse."""


class OutOfOrder(EngineError):
    """It took the question and said nothing, or cannot be asked in this way: trying again does not help, nor can whoever asks."""


class LeftAlone(Unreached):
    """It was not asked: it did not answer others."""


@dataclass(frozen=True)
class Health:
    """What is known of an upstream. `state`: closed (it is asked), open (it is left alone), half-open (it is being tried)."""

    state: str
    checked_at: float  # seconds since 1970 of the last health check; 0 before the first
    latency_ms: float | None
    failures: int  # in a row
    error: str  # of the last one; empty since it last answered

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Guard:
    """One upstream as one process sees it. Everything but `health` belongs to the event loop's thread."""

    def __init__(self, spec: UpstreamSpec, client: httpx.AsyncClient):
        self._spec, self._client = spec, client
        # A server that refuses a question, or finds it too much, lives.
        self._breaker = CircuitBreaker(FAILURES_UNTIL_OPEN, OPEN_SECONDS, exclude=[ParameterRefused, Busy, Unanswered], throw_new_error_on_trip=False)
        self._checked_at, self._error = 0.0, ""
        self._failed_checks = 0  # in a row
        self._latency_ms: float | None = None

    @property
    def health(self) -> Health:
        failures = max(self._breaker.fail_counter, self._failed_checks)
        return Health(self._breaker.current_state, self._checked_at, self._latency_ms, failures, self._error)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What is done in here tells whether the server works. EngineError at once while it is left alone."""
        if self._breaker.current_state == STATE_OPEN:
            raise LeftAlone(
                f"The upstream {self._spec.place} does not answer. It is tried again every few seconds; ask again in a moment. "
                f"The last time: {self._error}"
            )
        try:
            yield
        except Exception as failure:  # not a stop by the asker, which says nothing of the server
            self._count(failure)
            if isinstance(failure, Unreached | OutOfOrder | BrokenOff) and not isinstance(failure, Busy | Unanswered):
                self._error = str(failure)
            raise
        self._count(None)

    def _count(self, failure: Exception | None) -> None:
        """Told once a question has ended: were it asked within the breaker, a stop would count as a success, if not as a failure."""
        with suppress(Exception), self._breaker.calling():  # the failure itself, or that meanwhile others have opened the circuit
            if failure:
                raise failure

    def retries(self) -> AsyncRetrying:
        return AsyncRetrying(retry=retry_if_exception_type(Unreached), stop=stop_after_attempt(ATTEMPTS), wait=_pause, reraise=True)

    @asynccontextmanager
    async def response(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """A POST whose answer has begun well. Unreached, Busy, OutOfOrder, ParameterRefused; leaving it early closes the connection."""
        request = self._client.build_request("POST", f"{self._spec.base_url}{path}", json=body, headers=self._headers())
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise self._unreached(error) from error
        try:
            if not response.is_success:
                await self._refuse(response)
            yield response
        finally:
            await response.aclose()

    def _headers(self) -> dict[str, str]:
        try:
            return headers_of(self._spec)
        except CannotBeUsed as error:
            raise OutOfOrder(str(error)) from error

    def _unreached(self, error: httpx.TransportError) -> EngineError:
        """One that works at the question, and is slow, is not given it a second time."""
        if isinstance(error, httpx.ReadTimeout):
            return OutOfOrder(f"The upstream {self._spec.place} has not begun to answer within {TIMEOUT.read:g} s.")
        return Unreached(f"The upstream {self._spec.place} cannot be reached: {reason_of(error)}.")

    async def _refuse(self, response: httpx.Response) -> None:
        try:
            detail = detail_of(await response.aread())
        except httpx.TransportError as error:
            detail = reason_of(error)
        status, place = response.status_code, self._spec.place
        if status == _BUSY:
            raise Busy(f"The upstream {place} is busy: {detail}.", _seconds(response.headers.get("retry-after")))
        if status == _FAILED:
            raise Unanswered(f"The upstream {place} fails at this question (500): {detail}.")
        if status in _NOT_NOW:
            raise Unreached(f"The upstream {place} fails ({status}): {detail}.")
        if status in _REFUSED:
            raise OutOfOrder(f"The upstream {place} refuses the portal's key ({status}): {detail}.")
        if status in _ELSEWHERE:
            raise OutOfOrder(f"The upstream {place} does not answer at the address that it was connected by ({status}): {detail}.")
        raise ParameterRefused(f"The upstream refuses this question ({status}): {detail}.")

    async def check_forever(self) -> None:
        while True:
            await self._check()
            await asyncio.sleep(HEALTH_SECONDS)

    async def _check(self) -> None:
        """While the circuit is closed, a check that goes well forgives no question's failure; while it is open, it is the trial."""
        began, closed = time.monotonic(), self._breaker.current_state == STATE_CLOSED
        try:
            with nullcontext() if closed else self._breaker.calling():
                await self._list_models()
        except CircuitBreakerError:
            return  # not yet
        except Exception as error:  # noqa: BLE001 — whatever it is, the check must go on, and the page says what it was
            self._error = str(error)
            self._failed_checks += 1
            if closed and self._failed_checks >= FAILURES_UNTIL_OPEN:
                self._breaker.open()
        else:
            self._failed_checks = 0
            self._latency_ms = (time.monotonic() - began) * 1000
            if not self._breaker.fail_counter:
                self._error = ""
        self._checked_at = time.time()

    async def _list_models(self) -> None:
        """Unreached where that brings no sign of life: any word is one."""
        try:
            response = await self._client.get(f"{self._spec.base_url}/models", headers=self._headers(), timeout=HEALTH_TIMEOUT_SECONDS)
        except httpx.TransportError as error:
            raise Unreached(reason_of(error)) from error
        if response.status_code >= 500 or response.status_code in _REFUSED:
            raise Unreached(f"its list of models answers with {response.status_code}")


_exponential = wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_SECONDS)


def _pause(state: RetryCallState) -> float:
    """What the upstream asks for, up to some seconds; else at random, longer each time."""
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.retry_after if isinstance(failure, Unreached) else None
    return min(asked, LONGEST_PAUSE_SECONDS) if asked is not None else _exponential(state)


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header or ""))
    except ValueError:  # a date, or nothing
        return None
