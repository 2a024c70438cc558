"""What Locust runs for `benchmarks.load`: questions that arrive whether earlier ones are answered or not (an open loop, exponential gaps).

`LOAD_PLAN` names a file of JSON, a `benchmarks._generator.Plan`; every request is written to its `results`, a line each.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from itertools import accumulate, count
from pathlib import Path

import gevent
from gevent.pool import Group
from locust import FastHttpUser, task

PLAN = json.loads(Path(os.environ["LOAD_PLAN"]).read_text())
PATIENCE_SECONDS = 30.0  # of a client; then it gives up, and that counts as failed


class Asker(FastHttpUser):
    """One is enough: each of its questions has a greenlet and a connection of its own."""

    concurrency = 8192
    connection_timeout = network_timeout = PATIENCE_SECONDS

    def on_start(self) -> None:
        self._chance = random.Random(PLAN["seed"])
        self._rows: list[list] = []
        self._asking = Group()
        self._refused = 0  # or failed
        self._headers = {"Authorization": f"Bearer {PLAN['token']}"}

    @task
    def replay(self) -> None:
        questions, due = self._questions(), time.time()
        for rate, seconds in PLAN["stages"]:
            ends = due + seconds
            while (due := due + self._chance.expovariate(rate)) < ends:
                if (early := due - time.time()) > 0:
                    gevent.sleep(early)
                self._asking.spawn(self._ask, due, next(questions))
            due = ends
            if PLAN["until_full"] and (self._refused or len(self._asking) > rate):  # more than a second's arrivals wait
                break
        self._asking.join()
        Path(PLAN["results"]).write_text("\n".join(map(json.dumps, self._rows)))
        self.environment.runner.quit()

    def _questions(self) -> Iterator[dict]:
        subjects, first, distinct = PLAN["subjects"], PLAN["first"], PLAN["distinct"]
        zipf = list(accumulate(1 / rank for rank in range(1, distinct + 1)))  # s = 1.0
        for number in count():
            rank = self._chance.choices(range(distinct), cum_weights=zipf)[0] if distinct else number
            prompt = f"What is {subjects[rank % len(subjects)]}? ({first + rank})"
            fails = PLAN["failing"] and self._chance.random() < PLAN["failing"]
            version = PLAN["failing_version"] if fails else PLAN["version"]
            yield {"prompt": prompt, "max_tokens": PLAN["max_tokens"], "version": version, "temperature": 0}

    def _ask(self, due: float, question: dict) -> None:
        sent = time.time()
        with self.client.post("/api/v1/generate/", json=question, headers=self._headers, catch_response=True) as response:
            ended, status = time.time(), response.status_code
            self._refused += status != 200
            if status == 429:
                response.success()  # as it should under too much load; counted apart
            answer = response.json() if status == 200 else {}
            wait = response.headers.get("Retry-After") if status == 429 else None
            error = "" if status in (200, 429) else str(response.error or response.text)[:300]
        told = answer.get("version"), answer.get("latency_ms")
        self._rows.append([due, sent, ended, status, answer.get("cached", False), int(wait) if wait else None, *told, error])
