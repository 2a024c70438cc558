"""How many requests and tokens a minute an API token may use: sliding windows in Redis, shared by all web processes.

A request counts, whatever becomes of it. How many tokens it uses is known at its end only, so the one that crosses the limit is still answered,
and the next one waits. Headers and refusals are as OpenAI's, whose clients wait and try again by themselves.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from django.conf import settings
from django.utils.translation import gettext as _

from apps.accounts.models import ApiToken
from apps.accounts.problems import QUEUE_OUTAGES, Busy
from apps.monitoring import names
from apps.redis import WRITE, Ledger, Script

REQUESTS, TOKENS = "requests", "tokens"


MINUTE = 60.0

# A sliding window as a counter of this minute and the share of the last one's that the window still covers (as Cloudflare counts).
# KEYS: the two minutes' hashes, the epoch, a ledger's. ARGV: that share; the limit of requests and of tokens, 0 for none; requests to take, 0 to look
# only; how long a minute is kept; the epoch in which the ledger is to be written; the ledger.
# Which limit is reached ('' for none), then this minute's and the last one's requests and tokens, then the epoch.
_TAKE = Script(
    WRITE
    + """
local share = tonumber(ARGV[1])
local now = redis.call('HMGET', KEYS[1], 'requests', 'tokens')
local before = redis.call('HMGET', KEYS[2], 'requests', 'tokens')
local full = ''
for i, kind in ipairs({'requests', 'tokens'}) do
  now[i], before[i] = tonumber(now[i] or 0), tonumber(before[i] or 0)
  local limit = tonumber(ARGV[1 + i])
  if full == '' and limit > 0 and now[i] + math.floor(before[i] * share) >= limit then full = kind end
end
if full == '' and tonumber(ARGV[4]) > 0 then
  now[1] = redis.call('HINCRBY', KEYS[1], 'requests', ARGV[4])
  redis.call('EXPIRE', KEYS[1], ARGV[5])
end
local epoch = redis.call('GET', KEYS[3])
if full == '' and epoch == ARGV[6] then write(4, 7) end
return {full, now[1], before[1], now[2], before[2], epoch}
"""
)
KEPT_SECONDS = 150  # two minutes, and a little


@dataclass
class Window:
    """Of requests or tokens: what was used in this minute and in the last."""

    kind: str
    limit: int
    now: int = 0
    before: int = 0

    def remaining(self, share: float) -> int:
        return max(0, self.limit - self.now - math.floor(self.before * share))

    def wait_seconds(self, elapsed: float) -> float:
        """Until the next one has room, with nobody else asking."""
        if self.now >= self.limit:
            return MINUTE - elapsed + MINUTE * (1 - self.limit / self.now)
        return max(0.0, MINUTE * (1 - (self.limit - self.now) / self.before) - elapsed) if self.before else 0.0

    def free_seconds(self, elapsed: float) -> float:
        """Until all of it is free again."""
        return 2 * MINUTE - elapsed if self.now else MINUTE - elapsed if self.before else 0.0


class Quota:
    """Of one request and its API token. Without limits it asks Redis nothing by itself; with some, once, and hears by the way in which `epoch` that came
    (`apps.serving.epoch`)."""

    def __init__(self, token: ApiToken | None, clock: Callable[[], float] = time.time):
        limits = {
            REQUESTS: (token.requests_per_minute if token.requests_per_minute is not None else settings.REQUESTS_PER_MINUTE) if token else 0,
            TOKENS: (token.tokens_per_minute if token.tokens_per_minute is not None else settings.TOKENS_PER_MINUTE) if token else 0,
        }  # fmt: skip
        self._owner = token.pk if token else ""
        self._clock = clock
        self._asked = self._taken = False
        self.epoch: str | None = None
        self.windows = {kind: Window(kind, limit) for kind, limit in limits.items() if limit}

    def take_request(self) -> None:
        """Once, however often this is called. Busy where a window is full."""
        if self.windows and not self._taken:
            self._take()

    def take_and_write(self, ledger: Ledger, *, tokens: int, epoch: str) -> bool:
        """Take the request and its tokens and write the ledger, all by one command. False where `epoch` is over: then the request is taken, and nothing
        else. Busy, RedisError."""
        if TOKENS in self.windows:
            ledger.add(self._key(0), {TOKENS: tokens}, kept_seconds=KEPT_SECONDS)
        self._take(ledger, epoch)
        if self.epoch != epoch:
            return False
        if TOKENS in self.windows:
            self.windows[TOKENS].now += tokens
        return True

    def _take(self, ledger: Ledger | None = None, epoch: str = "") -> None:
        self._taken = True
        if full := self._ask(1 if self.windows else 0, ledger, epoch):
            self._refuse(self.windows[full])

    def spend_tokens(self, count: int, ledger: Ledger) -> None:
        """Count them when `ledger` is written."""
        if TOKENS in self.windows and count > 0:
            self.windows[TOKENS].now += count
            ledger.add(self._key(0), {TOKENS: count}, kept_seconds=KEPT_SECONDS)

    def headers(self) -> dict[str, str]:
        if self.windows and not self._asked:
            self._ask(requests=0)
        found, elapsed = {}, self._elapsed()
        for window in self.windows.values():
            found |= {
                f"X-RateLimit-Limit-{window.kind.title()}": str(window.limit),
                f"X-RateLimit-Remaining-{window.kind.title()}": str(window.remaining(1 - elapsed / MINUTE)),
                f"X-RateLimit-Reset-{window.kind.title()}": f"{window.free_seconds(elapsed):.3f}s",
            }
        return found

    def _ask(self, requests: int, ledger: Ledger | None = None, epoch: str = "") -> str:
        """Which limit is reached; nothing is counted or written then."""
        limits = [self.windows[kind].limit if kind in self.windows else 0 for kind in (REQUESTS, TOKENS)]
        keys, args = (ledger.keys, ledger.args) if ledger else ([], [])
        full, *used, self.epoch = _TAKE(
            [self._key(0), self._key(-1), names.SERVING_EPOCH, *keys],
            [1 - self._elapsed() / MINUTE, *limits, requests, KEPT_SECONDS, epoch, *args],
        )  # fmt: skip
        self._asked = True
        for kind, now, before in ((REQUESTS, *used[:2]), (TOKENS, *used[2:])):
            if kind in self.windows:
                self.windows[kind].now, self.windows[kind].before = now, before
        return full

    def _key(self, minutes: int) -> str:
        return f"dsportal:quota:{self._owner}:{int(self._clock() // MINUTE) + minutes}"

    def _elapsed(self) -> float:
        return self._clock() % MINUTE

    def _refuse(self, window: Window) -> None:
        seconds = max(1, math.ceil(window.wait_seconds(self._elapsed())))
        said = {"limit": f"{window.limit:,}", "n": seconds}
        text = (
            _("This token may ask %(limit)s times a minute; ask again in %(n)s s.")
            if window.kind == REQUESTS
            else _("This token may use %(limit)s tokens a minute; ask again in %(n)s s.")
        )
        raise Busy(text % said, retry_after_seconds=seconds)


class Metered:
    # For a DRF view: its requests count, and its answers say what is left. The view hands `self.quota` to whoever asks for it: that one takes the request,
    # with all that it has to tell Redis besides. (No docstring: the API's document would take it for the view's.)

    quota: Quota

    def initial(self, request, *args, **kwargs):
        super().initial(request, *args, **kwargs)
        self.quota = Quota(request.auth if isinstance(request.auth, ApiToken) else None)

    def handle_exception(self, exc):
        if self.request.method == "POST" and hasattr(self, "quota"):
            try:
                self.quota.take_request()  # it counts, though nobody could make anything of it
            except (Busy, *QUEUE_OUTAGES) as refused:
                exc = refused
        return super().handle_exception(exc)

    def finalize_response(self, request, response, *args, **kwargs):
        response = super().finalize_response(request, response, *args, **kwargs)
        if quota := getattr(self, "quota", None):
            with suppress(*QUEUE_OUTAGES):  # an answer without them is worth more than none
                for name, value in quota.headers().items():
                    response[name] = value
        return response
