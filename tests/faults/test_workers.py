"""SIGKILL to each process in the middle of its work: nothing that was accepted is lost or done twice, and all is well within 30 s."""

import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

import httpx
import psutil
import pytest
import redis

from apps.monitoring import names
from tests.stack import PATIENCE_SECONDS, Stack, recovery, wait_for

pytestmark = pytest.mark.faults

ASKERS = 12


class Asked(NamedTuple):
    asker: int
    prompt: str
    began: float  # of `time.monotonic`
    reply: httpx.Response


class Askers:
    """Services that ask one question after the other, each a different one, and keep what came. Every other one has a quota."""

    def __init__(self, stack: Stack, name: str):
        self.stack, self.name = stack, name
        self.asked: list[Asked] = []
        limits = {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000}
        self._limited = stack.post("/api/v1/tokens/", {"name": f"limited {name}", **limits})["token"]
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(ASKERS)
        self._running = [self._pool.submit(self._ask, number) for number in range(ASKERS)]

    def _ask(self, number: int) -> None:
        with self.stack.client(self._limited if number % 2 else self.stack.token) as http:
            turn = 0
            while not self._stop.is_set():
                prompt, began = f"What is an anchor? {self.name} {number}-{turn}", time.monotonic()
                reply = http.post("/api/v1/generate/", json={"prompt": prompt, "max_tokens": 24, "temperature": 0})
                self.asked.append(Asked(number, prompt, began, reply))
                turn += 1

    def all_answered_since(self, moment: float) -> bool:
        """Everybody was given an answer, no refusal, to what they have asked since then."""
        return len({asked.asker for asked in self.asked if asked.began > moment and asked.reply.is_success}) == ASKERS

    def finish(self) -> None:
        """No new questions; those asked are waited for. Raises what an asker raised, such as a connection cut."""
        self._stop.set()
        for asker in self._running:
            asker.result(PATIENCE_SECONDS)
        self._pool.shutdown()


@contextmanager
def questions(stack: Stack, name: str) -> Iterator[Askers]:
    askers = Askers(stack, name)
    try:
        wait_for(lambda: len(askers.asked) >= ASKERS, what="the first answers")
        yield askers
    finally:
        askers.finish()


def rows_of(stack: Stack, like: str) -> Counter[str]:
    """How often each question is in the table of answers, read beside the portal once nothing waits to be written there."""
    wait_for(lambda: not stack.redis().xlen(names.ANSWER_LOG), what="the answers' log is written down")
    with closing(sqlite3.connect(f"file:{stack.home / 'dsportal.sqlite3'}?mode=ro", uri=True, timeout=30)) as database:
        return Counter(prompt for (prompt,) in database.execute("SELECT prompt FROM serving_answer WHERE prompt LIKE ?", [f"%{like}%"]))


def test_training_goes_on_from_its_checkpoint_when_its_worker_and_child_are_killed(stack):
    dataset, known = stack.dataset()["id"], {row["id"] for row in stack.rows("/api/v1/model-versions/")}
    job = stack.train(dataset, minutes=0.5, parent=stack.version("live")["id"])
    saved = stack.wait_checkpoint(job)
    before = stack.get(job["url"])
    assert before["status"] == "running"
    stack.kill("jobs", "child")
    wait_for(
        lambda: (now := stack.get(job["url"]))["status"] == "running" and now["attempt"] > before["attempt"],
        within=recovery,
        what="a second attempt",
    )
    done = stack.wait_job(job)
    new = [row for row in stack.rows("/api/v1/model-versions/") if row["id"] not in known]
    assert [row["id"] for row in new] == [done["model_version"]]
    assert stack.resumed_from(job) >= saved
    assert [event["data"]["why"] for event in stack.get(f"{job['url']}events/", kind="requeued")["results"]]


def test_answers_in_flight_come_all_the_same_when_the_inference_worker_is_killed(stack):
    with questions(stack, "inference") as askers:
        stack.freeze("inference")  # in the middle of its answers, so that every asker waits for one that cannot come
        wait_for(lambda: stack.redis().zcard(names.IN_FLIGHT) >= ASKERS, what="an answer in flight for every asker")
        answered = len(askers.asked)
        stack.kill("inference")
        wait_for(lambda: len(askers.asked) >= answered + ASKERS, within=recovery, what="the answers that were in flight")
    all_asked = askers.asked
    assert {asked.reply.status_code for asked in all_asked} == {200}
    assert rows_of(stack, "What is an anchor? inference") == Counter(asked.prompt for asked in all_asked)
    assert len({asked.reply.json()["answer"] for asked in all_asked}) == len(all_asked)
    # Begun again, an answer continues: asked anew on the healthy worker, uncached, each of those gives the same text.
    for asked in all_asked[answered : answered + 3]:
        again = stack.ask(asked.prompt, max_tokens=25)
        assert not again["cached"]
        assert again["text"].startswith(asked.reply.json()["text"])


def test_redis_killed_in_the_middle_refuses_honestly_and_work_goes_on(stack):
    first = stack.train(stack.dataset()["id"], steps=80)
    stack.wait_job(first, status="running")
    with questions(stack, "redis") as askers:
        before = stack.redis().info("server")["run_id"]
        stack.kill("redis")
        second = stack.train(stack.dataset()["id"], steps=20)  # accepted, though nobody can be told
        wait_for(lambda: _run_id(stack) not in (None, before), within=recovery, what="Redis is back")
        stack.wait_answers(within=recovery)
        back = time.monotonic()
        wait_for(lambda: askers.all_answered_since(back), within=recovery, what="answers to everybody again")
        well = time.monotonic()
    for reply in (asked.reply for asked in askers.asked if asked.reply.status_code != 200):
        assert reply.status_code in (429, 503, 504), f"{reply.text}\n{stack.told(reply.json()['request_id'])}"
        assert reply.json()["detail"]
    # What was asked before may be refused late: whoever waited for the dead Redis waits no longer than an answer may take.
    assert {asked.reply.status_code for asked in askers.asked if asked.began > well} <= {200}
    counted = rows_of(stack, "What is an anchor? redis")
    assert not {prompt: count for prompt, count in counted.items() if count > 1}
    assert all(counted[asked.prompt] for asked in askers.asked if asked.reply.status_code == 200)
    # The job that ran went on, and the one whose message was in the dead Redis is found in its row.
    assert stack.wait_job(first)["attempt"] == 1
    assert stack.wait_job(second)["model_version"]


def _run_id(stack: Stack) -> str | None:
    try:
        return stack.redis().info("server")["run_id"]
    except redis.RedisError:
        return None


@pytest.mark.parametrize("whole", [True, False], ids=["all its processes", "its first process alone"])
def test_the_web_process_is_back_at_once_and_nothing_was_forgotten(stack, whole):
    versions = {row["id"] for row in stack.rows("/api/v1/model-versions/")}
    old = {process.pid for process in stack.processes("web")}
    if whole:
        stack.kill("web")
    else:
        min(stack.processes("web"), key=lambda process: process.create_time()).kill()
    wait_for(
        lambda: not old & {process.pid for process in stack.processes("web")},
        within=recovery,
        what="none of the old web processes is left",
    )
    wait_for(stack.is_ready, within=recovery, what="the portal is ready")
    assert {row["id"] for row in stack.rows("/api/v1/model-versions/")} == versions
    stack.wait_answers(within=recovery)


def accepting(stack: Stack) -> list[psutil.Process]:
    """Its web processes that take connections by now: after a start or a crash one may be long before another."""
    found = []
    for process in stack.processes("web"):
        with suppress(psutil.Error):
            if any(c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp")):
                found.append(process)
    return found


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one web process for one core")
def test_one_web_process_takes_in_what_both_would(stack):
    """As after a start or a crash: connections come, and stay, while only one process is there to accept them."""
    asking = 60
    listening = wait_for(lambda: len(found := accepting(stack)) > 1 and found, what="two web processes accept connections")
    for process in listening[1:]:
        process.kill()
        process.wait()
    stack.freeze("inference")  # so that all of them wait at once

    def ask(number: int) -> httpx.Response:
        with stack.client(stack.token) as http:
            return http.post("/api/v1/generate/", json={"prompt": f"What is an anchor? alone {number}", "max_tokens": 8, "temperature": 0})

    with ThreadPoolExecutor(asking) as pool:
        asked = [pool.submit(ask, number) for number in range(asking)]
        try:
            wait_for(lambda: stack.redis().zcard(names.IN_FLIGHT) >= asking or any(each.done() for each in asked), what="all are asking")
        finally:
            stack.thaw("inference")
        assert {each.result().status_code for each in asked} == {200}


def test_beat_killed_is_started_again_and_its_rounds_go_on(stack):
    stack.kill("beat")
    wait_for(lambda: stack.processes("beat"), within=recovery, what="beat is back")
    stack.ask("What is a tide?", max_tokens=1)
    began = int(time.time())
    wait_for(lambda: _gauges_since(stack, began), within=recovery, what="beat's gauges of a second after its death")


def _gauges_since(stack: Stack, began: int) -> bool:
    r = stack.redis()
    return any(r.hexists(names.SECOND.format(second=second), "gauge|replicas") for second in range(began, int(time.time()) + 1))
