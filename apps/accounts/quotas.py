"""How many requests and tokens a minute an API token may use: sliding windows in Redis, shared by all web processes.

A request counts when it comes. How many tokens it uses is known at its end only, so the one that crosses the limit is still answered,
and the next one waits. Headers and refusals are as OpenAI's, whose clients wait and try again by themselves.
"""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings
from django.utils.translation import gettext as _
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from apps.accounts.models import ApiToken
from apps.accounts.problems import QUEUE_OUTAGES, Busy
from apps.redis import connection

REQUESTS, TOKENS = "requests", "tokens"


@lru_cache(maxsize=1)
def _limiter() -> SlidingWindowCounterRateLimiter:
    return SlidingWindowCounterRateLimiter(
        RedisStorage(settings.REDIS_URL, connection_pool=connection().connection_pool, key_prefix="dsportal:quota")
    )


@dataclass(frozen=True)
class Window:
    kind: str  # requests or tokens
    limit: int
    owner: str

    @property
    def item(self) -> RateLimitItemPerMinute:
        return RateLimitItemPerMinute(self.limit)

    def hit(self, cost: int = 1) -> bool:
        return _limiter().hit(self.item, self.owner, self.kind, cost=cost)

    def state(self) -> tuple[int, float]:
        """What remains, and the seconds until the window is free again."""
        reset, remaining = _limiter().get_window_stats(self.item, self.owner, self.kind)
        return max(0, remaining), max(0.0, reset - time.time())


class Quota:
    """Of one API token. Without limits it asks Redis nothing."""

    def __init__(self, token: ApiToken | None):
        limits = {
            REQUESTS: (token.requests_per_minute if token.requests_per_minute is not None else settings.REQUESTS_PER_MINUTE) if token else 0,
            TOKENS: (token.tokens_per_minute if token.tokens_per_minute is not None else settings.TOKENS_PER_MINUTE) if token else 0,
        }  # fmt: skip
        self.windows = [Window(kind, limit, token.pk) for kind, limit in limits.items() if limit and token]

    def take_request(self) -> None:
        """Busy where a window is full."""
        for window in self.windows:
            if window.kind == TOKENS:
                if window.state()[0] <= 0:
                    self._refuse(window)
            elif not window.hit():
                self._refuse(window)

    def spend_tokens(self, count: int) -> None:
        for window in self.windows:
            # The limiter refuses, and does not count, what goes beyond the limit: then what remains is used up.
            if window.kind == TOKENS and count > 0 and not window.hit(count) and (left := window.state()[0]):
                window.hit(left)

    def headers(self) -> dict[str, str]:
        found = {}
        for window in self.windows:
            remaining, seconds = window.state()
            found |= {
                f"X-RateLimit-Limit-{window.kind.title()}": str(window.limit),
                f"X-RateLimit-Remaining-{window.kind.title()}": str(remaining),
                f"X-RateLimit-Reset-{window.kind.title()}": f"{seconds:.3f}s",
            }
        return found

    def _refuse(self, window: Window) -> None:
        seconds = max(1, math.ceil(window.state()[1]))
        said = {"limit": f"{window.limit:,}", "n": seconds}
        text = (
            _("This token may ask %(limit)s times a minute; ask again in %(n)s s.")
            if window.kind == REQUESTS
            else _("This token may use %(limit)s tokens a minute; ask again in %(n)s s.")
        )
        raise Busy(text % said, retry_after_seconds=seconds)


class Metered:
    # For a DRF view: its requests count, and its answers say what is left. The view hands `self.quota` to whoever knows the tokens.
    # (No docstring: the API's document would take it for the view's.)

    quota: Quota

    def initial(self, request, *args, **kwargs):
        super().initial(request, *args, **kwargs)
        self.quota = Quota(request.auth if isinstance(request.auth, ApiToken) else None)
        if request.method == "POST":
            self.quota.take_request()

    def finalize_response(self, request, response, *args, **kwargs):
        response = super().finalize_response(request, response, *args, **kwargs)
        if quota := getattr(self, "quota", None):
            with suppress(*QUEUE_OUTAGES):  # an answer without them is worth more than none
                for name, value in quota.headers().items():
                    response[name] = value
        return response
