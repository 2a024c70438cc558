"""`make run`: Redis, web, workers and beat under one foreground process. Imports no Django: it waits for days.

Why not a library: honcho, circus and supervisord leave the processes behind when they are killed themselves, and none removes
the gauges of a dead process from Prometheus's folder. Here each child is told by the kernel when its supervisor dies.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from dsportal import embedded_redis
from dsportal.metrics_folder import bury_dead

BASE = Path(__file__).resolve().parent.parent
CORES = os.cpu_count() or 1
WEB_PROCESSES = min(4, CORES)
# A connection on which nobody asks is closed after so long. Who asks again at that very moment loses the question, and must not repeat a POST unasked: so it
# is as long as granian takes it, which is what most proxies keep theirs.
IDLE_SECONDS = 60
MAX_ASKING = 40  # questions that one of them is at while the portal is full; with room elsewhere, it may be at those of all
SPARE_THREADS = 8  # `settings.SPARE_THREADS`: they carry pages, and refusals
MIN_FREE_BYTES = 500 * 1024**2
STARTUP_SECONDS = 180.0  # much longer than it takes, as a machine may be slow and busy; a process that ends is seen at once
STOP_SECONDS = 20.0
DRAIN_SECONDS = 70.0  # for an inference worker that is no longer needed: longer than an answer may take
BURY_SECONDS = 5.0  # granian starts its own workers again, and tells nobody
CALM_SECONDS = 20.0  # a process that lived so long starts anew at once; one that did not waits longer each time
MAX_DELAY_SECONDS = 15.0
PR_SET_PDEATHSIG = 1


CELERY = [
    sys.executable, "-m", "celery", "--quiet", "-A", "dsportal", "worker", "--loglevel", "warning", "--without-gossip", "--without-mingle",
]  # fmt: skip


class CannotStart(SystemExit):
    def __init__(self, why: str):
        sys.stderr.write(f"DSPortal cannot start: {why}\n")
        super().__init__(1)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass
class Service:
    name: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0
    retired: float | None = None  # since when it is to end and not to come back

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


_libc = ctypes.CDLL(None)


def _die_with_supervisor() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    def __init__(self, home: Path, host: str, port: int):
        self.home, self.host, self.port = home, host, port
        self.stopping = threading.Event()
        self.services: list[Service] = []
        self.metrics_folder = home / "run" / "prometheus"
        self.replicas_file = home / "run" / "inference-replicas"
        self.inference_threads = int(os.environ.get("DSPORTAL_INFERENCE_THREADS") or max(1, CORES // 2))
        self.most_replicas = int(os.environ.get("DSPORTAL_MAX_REPLICAS") or max(1, CORES // self.inference_threads))
        self.replicas_started = 0
        self._buried = 0.0  # when it was last looked for counts of the dead
        asking = int(os.environ.get("DSPORTAL_MAX_ASKING") or MAX_ASKING)
        in_flight = int(os.environ.get("DSPORTAL_MAX_IN_FLIGHT") or WEB_PROCESSES * asking)
        self.web_threads = max(asking, min(in_flight, WEB_PROCESSES * MAX_ASKING)) + SPARE_THREADS
        self.env = {
            **os.environ,
            "DSPORTAL_HOME": str(home),
            "PROMETHEUS_MULTIPROC_DIR": str(self.metrics_folder),
            "DSPORTAL_REPLICAS_FILE": str(self.replicas_file),
            "DSPORTAL_MAX_REPLICAS": str(self.most_replicas),
            "DSPORTAL_INFERENCE_THREADS": str(self.inference_threads),
            "DSPORTAL_WEB_THREADS": str(self.web_threads),
            "DSPORTAL_MAX_ASKING": str(asking),
            "DSPORTAL_MAX_IN_FLIGHT": str(in_flight),
            "PYTHONUNBUFFERED": "1",
            # Light processes need no threads of OpenMP; spinning ones would take the cores from those that do.
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "MALLOC_ARENA_MAX": "2",
            "TOKENIZERS_PARALLELISM": "false",
            # Celery warns root of unpickled messages; ours are JSON.
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges",
        }

    # -- before anything runs

    def check(self) -> None:
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            probe = self.home / f".probe-{os.getpid()}"
            probe.write_bytes(b"\0" * 65536)
            probe.unlink()
        except OSError as error:
            raise CannotStart(f"{self.home} cannot be written ({error.strerror}). Set DSPORTAL_HOME to a folder with room.") from error
        free = shutil.disk_usage(self.home).free
        if free < MIN_FREE_BYTES:
            raise CannotStart(f"only {free // 1024**2} MB are free on the disk of {self.home}; it needs {MIN_FREE_BYTES // 1024**2} MB.")
        with socket.socket() as probe_socket:
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe_socket.bind((self.host, self.port))
            except OSError as error:
                raise CannotStart(f"port {self.port} is taken ({error.strerror}). Choose another one: PORT=8001 make run") from error

    def lock(self) -> None:
        """Two portals on one home would run each job twice. Only the one that holds the lock may clear what the last run left."""
        import fcntl

        (self.home / "run").mkdir(exist_ok=True)
        self._lock_file = (self.home / "run" / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotStart(f"another DSPortal is running on {self.home}. Stop it, or set another DSPORTAL_HOME.") from error
        shutil.rmtree(self.metrics_folder, ignore_errors=True)
        self.metrics_folder.mkdir()
        self.replicas_file.unlink(missing_ok=True)

    # -- Redis

    def add_redis(self) -> None:
        """Our own Redis, unless REDIS_URL names one."""
        if os.environ.get("REDIS_URL"):
            return
        program = embedded_redis.server()
        if program is None:
            raise CannotStart("there is no Redis: install redis-server, or name a running one in REDIS_URL.")
        own = embedded_redis.configure(self.home / "redis")
        self.env["REDIS_URL"] = own.url
        service = Service("redis", [program, str(own.config)])
        self.services.append(service)
        self._start(service)
        deadline = time.monotonic() + STARTUP_SECONDS
        while not own.answers():
            if not service.is_running:
                raise CannotStart(f"Redis ended at once. {own.log} says why.")
            if time.monotonic() > deadline or self.stopping.wait(0.05):
                raise CannotStart("Redis does not answer.")

    # -- processes

    def prepare(self) -> dict:
        done = subprocess.run([sys.executable, "manage.py", "prepare"], cwd=BASE, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr)
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CannotStart(f"the database could not be prepared: {last[0]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def add_processes(self) -> None:
        web = [
            sys.executable, "-m", "granian", "--interface", "wsgi", "--host", self.host, "--port", str(self.port),
            "--workers", str(WEB_PROCESSES), "--blocking-threads", str(self.web_threads), "--backlog", "1024", "--respawn-failed-workers",
            "--workers-kill-timeout", "10", "--http1-header-read-timeout", str(IDLE_SECONDS * 1000), "--log-level", "error", "dsportal.wsgi:application",
        ]  # fmt: skip
        self.services += [
            Service("web", web),
            Service("jobs", [*CELERY, "-Q", "jobs", "-n", "jobs@%h", "-P", "threads", "-c", "2"]),
            self._inference_worker(),
            Service("beat", [*CELERY, "-Q", "beat", "-n", "beat@%h", "-P", "solo", "-B", "-s", str(self.home / "run" / "schedule")]),
        ]  # fmt: skip
        for service in self.services:
            if not service.is_running:
                self._start(service)

    def _inference_worker(self) -> Service:
        self.replicas_started += 1
        return Service(
            "inference", [*CELERY, "-Q", "inference", "-n", f"inference@%h-{self.replicas_started}", "-P", "threads", "-c", "64"],
            {"OMP_NUM_THREADS": str(self.inference_threads)},
        )  # fmt: skip

    def _follow_load(self) -> None:
        """As many inference workers as the portal's autoscaler has written down. One that is too many answers what it has, and ends."""
        wanted = min(max(1, self._replicas_wanted()), self.most_replicas)
        working = [s for s in self.services if s.name == "inference" and s.retired is None]
        self.services += [self._inference_worker() for _ in range(wanted - len(working))]
        for service in working[wanted:]:
            service.retired = time.monotonic()
            if service.is_running:
                service.process.terminate()

    def _replicas_wanted(self) -> int:
        try:
            return int(self.replicas_file.read_text())
        except (OSError, ValueError):
            return 1

    def _start(self, service: Service) -> None:
        service.process = subprocess.Popen(
            service.argv, cwd=BASE, env={**self.env, **service.env}, stdin=subprocess.DEVNULL,
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then ends the rest in order.
            start_new_session=True, preexec_fn=_die_with_supervisor,  # noqa: PLW1509 — the supervisor has one thread
        )  # fmt: skip
        service.started = time.monotonic()

    def wait_until_up(self) -> None:
        url = f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}/healthz"  # noqa: S104
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self.stopping.is_set():
            self._keep_running()
            with suppress(URLError, OSError), urlopen(url, timeout=3):
                return
            if time.monotonic() > deadline:
                self.stop()
                raise CannotStart(f"the web process does not answer within {STARTUP_SECONDS:.0f} s; the lines above say why.")
            self.stopping.wait(0.1)

    def watch(self) -> None:
        while not self.stopping.wait(0.25):
            self._follow_load()
            self._keep_running()
            if time.monotonic() - self._buried > BURY_SECONDS:
                self._bury_counts()

    def _keep_running(self) -> None:
        now = time.monotonic()
        for service in list(self.services):
            if service.retired is not None:
                self._bury(service, now)
                continue
            if service.is_running:
                continue
            if service.process is not None:
                code = service.process.returncode
                _end_group(service.process.pid)
                service.failures = 0 if now - service.started > CALM_SECONDS else service.failures + 1
                delay = min(MAX_DELAY_SECONDS, 2.0 ** (service.failures - 1)) if service.failures > 1 else 0.0
                say(f"{service.name} ended ({_how(code)}); it is started again{f' in {delay:.0f} s' if delay else ''}.")
                service.process, service.due = None, now + delay
                self._bury_counts()
            if now >= service.due:
                self._start(service)

    def _bury(self, service: Service, now: float) -> None:
        """Forget a worker that was to end, once it has; one that does not end is killed, and its answers go to another."""
        if service.is_running:
            if now - service.retired > DRAIN_SECONDS:
                _end_group(service.process.pid)
            return
        if service.process is not None:
            _end_group(service.process.pid)
        self.services.remove(service)
        self._bury_counts()

    def _bury_counts(self) -> None:
        self._buried = time.monotonic()
        bury_dead(self.metrics_folder)

    def stop(self) -> None:
        """Web first, so that nothing new comes in; Redis last, so that workers can give back what they hold."""
        self.stopping.set()
        order = [[s for s in self.services if s.name == "web"], [s for s in self.services if s.name not in ("web", "redis")], self.services]
        for group in order:
            running = [s for s in group if s.is_running]
            for service in running:
                service.process.terminate()  # the master alone: a signal to its group would kill its children in mid-task
            deadline = time.monotonic() + STOP_SECONDS
            for service in running:
                try:
                    service.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    with suppress(ProcessLookupError):
                        os.killpg(service.process.pid, signal.SIGKILL)
                    service.process.wait()


def _end_group(leader: int) -> None:
    """What a dead process left: granian's workers outlive their master, hold its port and would answer beside the new ones for ever."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _introduce(supervisor: Supervisor, new: dict) -> None:
    shown = "localhost" if supervisor.host in ("127.0.0.1", "0.0.0.0", "::") else supervisor.host  # noqa: S104
    password = new["password"] or "as it was set at the first start"
    token = new["token"] or "as it was printed at the first start; make others on the API page"
    say(f"\nDSPortal is at http://{shown}:{supervisor.port}/\n  user      admin\n  password  {password}\n  API token {token}\nCtrl-C ends it.\n")


def _port() -> int:
    given = os.environ.get("PORT") or "8000"
    if not given.isdigit() or not 0 < int(given) < 65536:
        raise CannotStart(f"PORT={given} is not a port; give a number from 1 to 65535.")
    return int(given)


def main() -> None:
    home = Path(os.environ.get("DSPORTAL_HOME") or BASE / "var").resolve()
    supervisor = Supervisor(home, os.environ.get("DSPORTAL_HOST") or "127.0.0.1", _port())
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, lambda *_: supervisor.stopping.set())
    supervisor.check()
    supervisor.lock()
    try:
        supervisor.add_redis()
        new = supervisor.prepare()
        if not supervisor.stopping.is_set():
            supervisor.add_processes()
            supervisor.wait_until_up()
        if not supervisor.stopping.is_set():
            _introduce(supervisor, new)
            supervisor.watch()
    finally:
        supervisor.stop()
    say("DSPortal has stopped; everything is kept.")


if __name__ == "__main__":
    main()
