"""Inference workers follow the load on one machine: a second one comes with a queue and goes with it, and no answer is lost on the way."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.stack import PATIENCE_SECONDS, Stack, running_copy, wait_for

pytestmark = pytest.mark.faults

ASKERS = 48


@pytest.fixture(scope="module")
def portal(trained_home: Path, tmp_path_factory) -> Iterator[Stack]:
    env = {"DSPORTAL_MAX_REPLICAS": "2", "DSPORTAL_INFERENCE_THREADS": "1", "DSPORTAL_SCALE_IN_SECONDS": "6"}
    yield from running_copy(trained_home, tmp_path_factory.mktemp("scaling"), env=env)


def test_a_second_worker_comes_with_the_queue_and_goes_with_it_and_every_answer_arrives(portal):
    stop, replies = threading.Event(), []

    def ask(number: int) -> None:
        with portal.client(portal.token) as http:
            turn = 0
            while not stop.is_set():
                prompt = f"What is an anchor? {number}-{turn}"
                replies.append(http.post("/api/v1/generate/", json={"prompt": prompt, "max_tokens": 64, "temperature": 0}))
                turn += 1

    def decisions() -> list[dict]:
        return portal.rows("/api/v1/scaling-decisions/")

    with ThreadPoolExecutor(ASKERS) as pool:
        asking = [pool.submit(ask, number) for number in range(ASKERS)]
        try:
            wait_for(
                lambda: len(replies) > ASKERS and any(row["ready_seconds"] for row in decisions()),  # a slow first answer may have brought it before
                what="a second inference worker answers, and everybody is at another question",
            )
        finally:
            stop.set()
        for each in asking:
            each.result(PATIENCE_SECONDS)
    wait_for(lambda: decisions()[0]["replicas"] == 1, what="the queue is gone, and so should the worker be")
    wait_for(lambda: len(portal.processes("inference")) == 1, what="one inference worker is left")
    assert {reply.status_code for reply in replies} == {200}
    assert len(replies) > ASKERS
    assert (decisions()[-1]["before"], decisions()[-1]["replicas"]) == (1, 2)
