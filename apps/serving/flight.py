"""Single flight: who asks what somebody else is asking at this moment reads that answer, and costs nothing."""

from django.conf import settings

from apps.monitoring import names
from apps.redis import connection


class LeaderLost(Exception):
    """The answer that was being read will not come."""


def join(key: str, answer: str) -> str:
    """The answer that is being made for `key`: an earlier one, or now this one. It counts no longer than an answer may take."""
    name = names.FLIGHT.format(key=key)
    r = connection()
    for _ in range(3):
        if r.set(name, answer, nx=True, ex=int(settings.ANSWER_TIMEOUT_SECONDS) + 1):
            return answer
        if leader := r.get(name):
            return leader
    return answer


def leads(key: str, answer: str) -> bool:
    """The leader still waits for its answer: it is in flight, as long as its web process lives and nobody stopped it."""
    r = connection()
    return r.get(names.FLIGHT.format(key=key)) == answer and r.zscore(names.IN_FLIGHT, answer) is not None


def leave(key: str, answer: str) -> None:
    """The answer is there (in the cache, from now on), or will not come."""
    connection().register_script("if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end")(
        keys=[names.FLIGHT.format(key=key)], args=[answer]
    )
