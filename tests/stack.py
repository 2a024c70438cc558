"""The real thing for tests: the supervisor with all its processes on a home of its own, empty or with two trained versions.

The root conftest loads this file as a plugin, so that its session fixtures are made once for all folders of tests.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest
import redis

from tests.ports import free_port

REPOSITORY = Path(__file__).resolve().parent.parent
KNOWLEDGE = Path(__file__).with_name("knowledge.jsonl")
# The contract: whatever died is back, and everything accepted is answered, within this time; a second start takes no longer than that.
# It is promised on a machine that is the portal's own: see `shared`.
RECOVERY_SECONDS, SECOND_START_SECONDS = 30.0, 15.0
PATIENCE_SECONDS = 240.0  # for what the contract gives no time: the machine may be slow and shared
POLL_SECONDS = 0.05
ROLES = {
    "supervisor": "dsportal.supervisor", "redis": "redis-server", "web": "granian", "jobs": "-n jobs@", "inference": "-n inference@",
    "beat": "-n beat@", "child": "-m workers.",
}  # fmt: skip
# The first version has read a few facts; the second, which goes on from it, all of them. Both are real runs of seconds.
FIRST_ENTRIES, FIRST_STEPS, SECOND_STEPS = 8, 60, 240

Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], *, within: float | Callable[[], float] = PATIENCE_SECONDS, what: str) -> Found:
    """The first true value of `condition`; fails the test, naming `what`, where it does not come, or too late. `within`: seconds, or what says how many
    they are at this moment (`recovery`): the most that it said counts."""
    began, allowed = time.monotonic(), 0.0
    while True:
        found = condition()
        allowed = max(allowed, within() if callable(within) else within)
        if time.monotonic() - began > allowed:
            pytest.fail(f"not within {allowed:.0f} s: {what}")
        if found:
            return found
        time.sleep(POLL_SECONDS)


def shared(seconds: float) -> float:
    """A promised time on a machine that others use too: longer by as much as they make its processes wait for a core, at most four times."""
    return seconds * min(4.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1))


def recovery() -> float:
    """`RECOVERY_SECONDS` on the machine as it is now. To be asked while one waits: how busy others make it shows a while after they have begun."""
    return shared(RECOVERY_SECONDS)


def clean_environment() -> dict[str, str]:
    """This process's, without what tests or a developer set for a portal."""
    foreign = ("DSPORTAL_", "DJANGO_", "PROMETHEUS_", "DATABASE_URL", "REDIS_URL", "ARTIFACTS_URL", "PORT", "PYTEST_", "OMP_", "CELERY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


_libc = CDLL(None)


def _end_with_tests() -> None:
    """A portal does not outlive the tests, even where those are killed."""
    _libc.prctl(1, signal.SIGTERM)


class Stack:
    """One portal. `start` and `stop` may be called again and again; leaving the context ends every process."""

    def __init__(self, home: Path, *, env: dict[str, str] | None = None):
        self.home = home
        self.port = free_port()
        self.password = "Pass-" + secrets.token_hex(8)
        self.token = "stack-" + secrets.token_hex(16)
        self.env = clean_environment() | {
            "PORT": str(self.port), "DSPORTAL_HOME": str(home), "DSPORTAL_DEMO": "0", "DSPORTAL_ADMIN_PASSWORD": self.password,
            "DSPORTAL_ADMIN_TOKEN": self.token,
            # Who asks is told that it takes too long when the tests would say so too: not while a promise may still be kept, on a machine that is `shared`.
            "DSPORTAL_ANSWER_TIMEOUT": str(PATIENCE_SECONDS), "DSPORTAL_NO_WORKER_SECONDS": str(PATIENCE_SECONDS / 2), **(env or {}),
        }  # fmt: skip
        self.log = home.parent / f"{home.name}.log"
        self.process: subprocess.Popen | None = None
        self.start_seconds = 0.0
        self.http = self.client(self.token)

    def __enter__(self) -> "Stack":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.destroy()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- processes

    def launch(self) -> subprocess.Popen:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dsportal.supervisor"], cwd=REPOSITORY, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_end_with_tests,  # noqa: PLW1509
            )  # fmt: skip
        return self.process

    def start(self) -> "Stack":
        """Returns when the portal answers and its workers listen."""
        began = time.monotonic()
        process = self.launch()
        wait_for(lambda: process.poll() is not None or self.is_up(), what=f"the portal is up\n{self.tail()}")
        if process.poll() is not None:
            pytest.fail(f"the supervisor ended with {process.returncode}:\n{self.tail()}")
        self.start_seconds = time.monotonic() - began
        return self

    def is_up(self) -> bool:
        with suppress(httpx.TransportError):
            return self.http.get("/healthz", timeout=3).status_code == 200
        return False

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return self.http.get("/readyz", timeout=5).status_code == 200
        return False

    def stop(self, sign: signal.Signals = signal.SIGINT) -> int:
        """End it as a person does, and return its exit status once no process is left."""
        self.process.send_signal(sign)
        status = self.process.wait(PATIENCE_SECONDS)
        wait_for(lambda: not self.processes(), within=recovery, what=f"no process is left; there are {self.processes()}")
        return status

    def destroy(self) -> None:
        self.http.close()
        if self.process and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(40)
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        if self.process:
            self.process.wait()

    def processes(self, *roles: str) -> list[psutil.Process]:
        """Processes of this portal, by role (see ROLES; none given: all): those that carry its token in their environment, and its Redis,
        which overwrites its own."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                mine = "redis-server" in command and f":{self._redis_port()} " in f"{command} "
                mine = mine or process.environ().get("DSPORTAL_ADMIN_TOKEN") == self.token
                if mine and (not roles or any(ROLES[role] in command for role in roles)):
                    found.append(process)
        return found

    def kill(self, *roles: str) -> list[int]:
        """SIGKILL to all processes of these roles at once."""
        victims = wait_for(lambda: self.processes(*roles), what=f"a process of {roles}")
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)  # so that no child lives on to see its parent dead
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return [process.pid for process in victims]

    def freeze(self, role: str) -> None:
        """Nothing goes on in these processes until `thaw`, or their death."""
        for process in self.processes(role):
            with suppress(psutil.NoSuchProcess):  # of two inference workers one may be too many, and end just now
                process.suspend()

    def thaw(self, role: str) -> None:
        for process in self.processes(role):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _redis_port(self) -> str:
        return self._redis_setting("port")

    def _redis_setting(self, name: str) -> str:
        with suppress(OSError):
            if found := re.search(rf"^{name} (\S+)$", (self.home / "redis" / "redis.conf").read_text(), re.MULTILINE):
                return found[1]
        return "none"

    def redis(self) -> redis.Redis:
        return redis.Redis(port=int(self._redis_port()), password=self._redis_setting("requirepass"), decode_responses=True)

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def told(self, request: str, characters: int = 3000) -> str:
        """What the log says of a request: from the first line with its id on."""
        _, found, rest = self.log.read_text(errors="replace").partition(request)
        return (found + rest)[:characters]

    # -- HTTP

    def client(self, token: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_SECONDS)

    def get(self, path: str, **params: Any) -> Any:
        return self.read(self.http.get(path, params=params or None))

    def post(self, path: str, body: dict | None = None, **how: Any) -> Any:
        return self.read(self.http.post(path, **(how or {"json": body or {}})))

    @staticmethod
    def read(response: httpx.Response) -> Any:
        assert response.is_success, f"{response.request.method} {response.request.url} → {response.status_code} {response.text[:600]}"
        return response.json()

    def rows(self, path: str, **params: Any) -> list[dict]:
        page = self.get(path, **params)
        found = page["results"]
        while page["next"]:
            page = self.get(page["next"])
            found += page["results"]
        return found

    def upload(self, name: str, content: bytes, filename: str = "data.jsonl") -> dict:
        return self.post("/api/v1/datasets/", data={"name": name}, files={"file": (filename, content)})

    def process_dataset(self, dataset: dict) -> dict:
        return self.wait_job(self.post(f"/api/v1/datasets/{dataset['id']}/process/"))

    def train(self, dataset: str, **fields: Any) -> dict:
        return self.post("/api/v1/training-jobs/", {"dataset": dataset, "preset": "nano", **fields})

    def wait_job(self, job: dict, *, status: str = "succeeded", within: float | Callable[[], float] = PATIENCE_SECONDS) -> dict:
        """The job's row once it has `status`; fails at once where it ended in another way."""
        seen = job

        def arrived() -> bool:
            nonlocal seen
            seen = self.get(job["url"])
            ended = seen["status"] in ("succeeded", "failed", "cancelled") and seen["status"] != status
            assert not ended, f"the job {seen['status']}: {seen['error']}\n{self.tail()}"
            return seen["status"] == status

        wait_for(arrived, within=within, what=f"{job['url']} has {status}")
        return seen

    def wait_checkpoint(self, job: dict) -> int:
        """Until the training has a checkpoint to go on from; its step. The first is written at once, of step 0, and does not count."""

        def newest() -> int:
            names = [path.name for path in (self.home / "work" / job["id"] / "checkpoints").glob("*")]
            return max((int(name) for name in names if name.isdecimal()), default=0)

        return wait_for(newest, what="a checkpoint")

    def resumed_from(self, job: dict) -> int:
        """The step that the job says it went on from; 0 where it never did."""
        notes = self.get(f"{job['url']}events/", kind="note")["results"]
        return max((note["data"].get("step", 0) for note in notes), default=0)

    def wait_evaluated(self, version: str) -> dict:
        """The version once it has figures and the gate has spoken."""
        path = f"/api/v1/model-versions/{version}/"
        return wait_for(lambda: (row := self.get(path)) and row["evaluation"] and self.gate(version)["rules"] and row, what=f"{version} is evaluated")

    def gate(self, version: str) -> dict:
        return self.get(f"/api/v1/model-versions/{version}/gates/")

    def version(self, state: str, kind: str = "moe") -> dict:
        return next(row for row in self.rows("/api/v1/model-versions/") if row["state"] == state and row["kind"] == kind)

    def named(self, name: str) -> dict:
        return next(row for row in self.rows("/api/v1/model-versions/") if row["name"] == name)

    def dataset(self) -> dict:
        return self.rows("/api/v1/datasets/")[-1]

    def ask(self, prompt: str, **fields: Any) -> dict:
        return self.post("/api/v1/generate/", {"prompt": prompt, "max_tokens": 32, "temperature": 0, **fields})

    def wait_answers(self, within: float | Callable[[], float] = PATIENCE_SECONDS) -> None:
        """Until the live version answers: after a start its worker loads it first."""
        wait_for(
            lambda: self.http.post("/api/v1/generate/", json={"prompt": "What is bran?", "max_tokens": 1}).is_success, within=within, what="an answer"
        )


def knowledge() -> list[dict]:
    return [json.loads(line) for line in KNOWLEDGE.read_text(encoding="utf-8").splitlines()]


def statement_of(title: str) -> str:
    return next(row["text"] for row in knowledge() if row.get("title") == title)


def teach(stack: Stack) -> None:
    """The loop's first half, as a service would go it: a dataset, version 1 live, version 2 waiting with its gate passed."""
    dataset = stack.upload("sea and bread", KNOWLEDGE.read_bytes())
    part = stack.upload("a little of the sea", b"".join(KNOWLEDGE.read_bytes().splitlines(keepends=True)[:FIRST_ENTRIES]))
    stack.process_dataset(part)
    stack.process_dataset(dataset)  # last, so that its held-out questions are the newest
    first = stack.wait_job(stack.train(part["id"], steps=FIRST_STEPS))["model_version"]
    stack.wait_evaluated(first)
    stack.post(f"/api/v1/model-versions/{first}/promote/")
    second = stack.wait_job(stack.train(dataset["id"], steps=SECOND_STEPS, parent=first))["model_version"]
    stack.wait_evaluated(second)
    compared = wait_for(
        lambda: (gate := stack.gate(second))["rules"][0]["threshold"] is not None and gate, what="both have answered the same questions"
    )
    assert compared["passed"], compared["rules"]


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory) -> Path:
    """A home to copy: `teach` was done on it, and its portal has stopped."""
    home = tmp_path_factory.mktemp("trained") / "home"
    with Stack(home) as stack:
        teach(stack)
        assert stack.stop() == 0, stack.tail()
    return home


def running_copy(trained_home: Path, folder: Path, **options: Any) -> Iterator[Stack]:
    """A running portal on a copy of the trained home: version 1 answers, version 2 waits for its promotion."""
    home = folder / "home"
    shutil.copytree(trained_home, home, ignore=shutil.ignore_patterns("redis", "run"))
    with Stack(home, **options) as running:
        running.wait_answers()
        yield running
