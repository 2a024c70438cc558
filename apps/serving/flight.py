"""Answers in flight: no more at once than the settings say, and one for all who ask the same at this moment (single flight): the others read it, and
cost nothing."""

import time

from django.conf import settings
from django.utils.translation import gettext as _

from apps.accounts.problems import Busy
from apps.monitoring import names
from apps.redis import connection
from apps.serving import line
from apps.serving.room import room

# KEYS: those in flight; the line; what is made for this question, where others may read it. ARGV: the answer; now; when it counts no longer; how many may
# be in flight; seconds for which others may join it; the question ('' where it does not go by the line); how long the line may get.
_ENTER = """
if KEYS[3] and not redis.call('SET', KEYS[3], ARGV[1], 'NX', 'EX', ARGV[5]) then
  local leader = redis.call('GET', KEYS[3])
  if leader ~= ARGV[1] then return {leader, '', 0} end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
local others = redis.call('ZCARD', KEYS[1])
if others >= tonumber(ARGV[4]) then
  if KEYS[3] then redis.call('DEL', KEYS[3]) end
  return {'', '', others}
end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
if ARGV[6] == '' then return {ARGV[1], '', others} end
return {ARGV[1], redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'question', ARGV[6]), others}
"""
_LEAVE = """
redis.call('ZREM', KEYS[1], ARGV[1])
if ARGV[2] ~= '' then redis.call('XDEL', KEYS[2], ARGV[2]) end
if KEYS[3] and redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
"""


class LeaderLost(Exception):
    """The answer that was being read will not come."""


def enter(answer: str, *, key: str = "", question: line.Asked | None = None) -> tuple[str, str]:
    """Begin an answer, and let its question stand in the line. Or else, where one is being made for `key` already, that one.

    Which answer it is, and its number in the line. It counts no longer than an answer may take. Busy.
    """
    now = time.time()
    leader, number, others = connection().register_script(_ENTER)(
        keys=_keys(key),
        args=[
            answer, now, now + settings.ANSWER_TIMEOUT_SECONDS, settings.MAX_IN_FLIGHT, int(settings.ANSWER_TIMEOUT_SECONDS) + 1,
            line.packed(question) if question else "", line.MOST,
        ],
    )  # fmt: skip
    if not leader:
        room.portal_is_full()
        raise Busy(_("%(n)s answers are being made already; ask again in a moment.") % {"n": others}, retry_after_seconds=2)
    return leader, number


def leads(key: str, answer: str) -> bool:
    """The leader still waits for its answer: it is in flight, as long as its web process lives and nobody stopped it."""
    r = connection()
    return r.get(names.FLIGHT.format(key=key)) == answer and r.zscore(names.IN_FLIGHT, answer) is not None


def leave(answer: str, *, key: str = "", number: str = "") -> None:
    """The answer is there (in the cache, from now on), or will not come. Nor does its question stand in the line any more."""
    connection().register_script(_LEAVE)(keys=_keys(key), args=[answer, number])


def _keys(key: str) -> list[str]:
    return [names.IN_FLIGHT, names.ASKED, *([names.FLIGHT.format(key=key)] if key else [])]
