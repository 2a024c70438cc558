"""A whole portal for a benchmark: the supervisor with all its processes on a home of its own, and a random model of the preset `nano` live."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil

PATIENCE_SECONDS = 180.0
REPOSITORY = Path(__file__).parent.parent
# What a training would have left: a version's row and files. It is made live by hand, as no gate has anything to say of random weights.
_MAKE_LIVE = """
import sys; from pathlib import Path
from apps.registry import services; from apps.registry.models import ModelVersion
result = {"total_parameters": 1, "active_parameters": 1, "config": %(config)s}
made = services.register_version(kind="moe", folder=Path(%(folder)r), parent=None, run=None, result=result, actor=None, name="random")
ModelVersion.objects.filter(pk=made.pk).update(state="live")
"""


class Portal:
    def __init__(self, home: Path, port: int, token: str, **env: str):
        foreign = ("DSPORTAL_", "DJANGO_", "PROMETHEUS_", "DATABASE_URL", "REDIS_URL", "ARTIFACTS_URL", "PORT", "OMP_", "CELERY_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "PORT": str(port), "DSPORTAL_HOME": str(home), "DSPORTAL_DEMO": "0", "DSPORTAL_ADMIN_TOKEN": token, **env,
        }  # fmt: skip
        self.url, self.token, self.home = f"http://127.0.0.1:{port}", token, home
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dsportal.supervisor"], cwd=REPOSITORY, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        _wait_for(self._is_up, "the portal is up")

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(PATIENCE_SECONDS)

    def make_live(self, folder: Path, config: dict) -> None:
        code = _MAKE_LIVE % {"config": config, "folder": str(folder)}
        subprocess.run([sys.executable, "manage.py", "shell", "-c", code], cwd=REPOSITORY, env=self.env, check=True, stdout=subprocess.DEVNULL)

    def ask(self, prompt: str, **fields) -> dict:
        body = json.dumps({"prompt": prompt, **fields}).encode()
        request = Request(f"{self.url}/api/v1/generate/", body, {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"})
        with urlopen(request, timeout=90) as response:
            return json.load(response)

    def wait_answers(self) -> None:
        def answers() -> bool:
            try:
                return bool(self.ask("Ready?", max_tokens=1))
            except (HTTPError, URLError, OSError):
                return False

        _wait_for(answers, "an answer")

    def cpu_seconds(self) -> dict[str, float]:
        """What each kind of process has used until now: web, redis, beat …"""
        used: dict[str, float] = {}
        assert self.process is not None
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with process.oneshot():
                command, times = " ".join(process.cmdline()), process.cpu_times()
            name = next((name for name in ("redis", "granian", "beat@", "inference@", "jobs@") if name in command), "other")
            used[name] = used.get(name, 0.0) + times.user + times.system
        return used

    def _is_up(self) -> bool:
        try:
            with urlopen(f"{self.url}/healthz", timeout=3):
                return True
        except (URLError, OSError):
            return False


def _wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(0.1)


@contextmanager
def portal(**env: str) -> Iterator[Portal]:
    from benchmarks.serving import random_model
    from workers.moe import PRESETS

    with tempfile.TemporaryDirectory() as temporary:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        running = Portal(Path(temporary) / "home", port, "bench-" + secrets.token_hex(16), **env)
        folder = random_model("nano", Path(temporary) / "model")
        try:
            running.start()
            running.make_live(folder, PRESETS["nano"].as_dict())
            running.wait_answers()
            yield running
        finally:
            running.stop()
