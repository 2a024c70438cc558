"""SIGKILL to whoever may hold an answer that is not in the database yet: each that somebody was given is there in the end, once."""

import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import httpx
import pytest

from tests.stack import PATIENCE_SECONDS, Stack, shared, wait_for

pytestmark = pytest.mark.faults

ASKERS = 6
WITHIN_SECONDS = 60.0


def patience() -> float:
    return shared(WITHIN_SECONDS)


def test_no_answer_is_lost_from_the_log_whoever_is_killed(stack: Stack):
    stack.ask("What is a log?")  # cached from here on: many answers a second, and none of them from the engine
    given, stop = [], threading.Event()

    def ask() -> None:
        with stack.client(stack.token) as http:
            while not stop.is_set():
                with suppress(httpx.TransportError):
                    reply = http.post("/api/v1/generate/", json={"prompt": "What is a log?", "max_tokens": 32, "temperature": 0})
                    if reply.is_success:
                        given.append(reply.json()["answer"])

    with ThreadPoolExecutor(ASKERS) as pool:
        asking = [pool.submit(ask) for _ in range(ASKERS)]
        try:
            for role in ("beat", "redis", "web", "inference", "beat"):
                before = len(given)
                wait_for(lambda before=before: len(given) > before + 20, within=patience, what=f"answers before {role} is killed")
                stack.kill(role)
                time.sleep(1.0)
        finally:
            stop.set()
        for one in asking:
            one.result(PATIENCE_SECONDS)
    wait_for(stack.is_ready, within=patience, what="the portal is ready")

    wait_for(lambda: not set(given) - _rows(stack).keys(), within=patience, what="every answer's row")
    assert set(_rows(stack).values()) == {1}
    assert len(set(given)) == len(given)


def _rows(stack: Stack) -> Counter[str]:
    """Ids in the table of answers, read beside the portal: nothing is written down by the reading."""
    with closing(sqlite3.connect(f"file:{stack.home / 'dsportal.sqlite3'}?mode=ro", uri=True, timeout=30)) as database:
        return Counter(pk for (pk,) in database.execute("SELECT id FROM serving_answer"))
