"""Promotion and roll-back while many ask: nobody's question fails, and each is answered by a version that was live while it was asked."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.stack import PATIENCE_SECONDS, Stack, wait_for

pytestmark = pytest.mark.faults

ASKERS = 8
SWAPS = 3


def test_promotions_and_roll_backs_under_load_lose_no_request(stack: Stack):
    first, second = stack.named("v1")["id"], stack.named("v2")["id"]
    assert stack.version("live")["id"] == first
    replies, stop = [], threading.Event()

    def ask(number: int) -> None:
        with stack.client(stack.token) as http:
            turn = 0
            while not stop.is_set():
                turn += 1  # every other question is a known one, from the cache
                prompt = f"What is a keel? swap {number}-{turn}" if turn % 2 else "What is a keel?"
                replies.append(http.post("/api/v1/generate/", json={"prompt": prompt, "max_tokens": 12, "temperature": 0}))

    def answered_by(version: str) -> bool:
        return replies[-1].is_success and replies[-1].json()["version"] == version

    with ThreadPoolExecutor(ASKERS) as pool:
        asking = [pool.submit(ask, number) for number in range(ASKERS)]
        try:
            wait_for(lambda: len(replies) > 4 * ASKERS, what="answers")
            for _ in range(SWAPS):
                stack.post(f"/api/v1/model-versions/{second}/promote/")
                wait_for(lambda: answered_by(second), what="an answer of the promoted version")
                stack.post(f"/api/v1/model-versions/{second}/rollback/")
                wait_for(lambda: answered_by(first), what="an answer of the version before")
        finally:
            stop.set()
        for one in asking:
            one.result(PATIENCE_SECONDS)

    assert {(reply.status_code, reply.text if reply.is_error else "") for reply in replies} == {(200, "")}
    assert {reply.json()["version"] for reply in replies} == {first, second}
    texts: dict[tuple[str, str], set[str]] = {}
    for reply in replies:
        body = reply.json()
        texts.setdefault((body["version"], reply.request.content.decode()), set()).add(body["text"])
    assert all(len(said) == 1 for said in texts.values())  # a cached answer is never the other version's
