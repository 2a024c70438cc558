"""The `jobs` worker: claims rows, runs each as a child process, follows its events. Holds no algorithm and imports no torch."""

import contextlib
import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from celery import signals
from django.conf import settings
from django.db import DatabaseError, close_old_connections
from prometheus_client import Counter, Histogram

from apps.accounts.problems import Problem
from apps.artifacts import ArtifactDamaged
from apps.jobs import services as jobs
from apps.jobs.models import Job, JobEvent
from apps.jobs.runs import Command, run_of, specific, work_folder
from apps.monitoring import names
from apps.monitoring.presence import keep_presence
from dsportal.celery import app

log = logging.getLogger(__name__)

jobs_total = Counter(names.JOBS_TOTAL, "Jobs that ended", ["kind", "status"])
job_seconds = Histogram(names.JOB_SECONDS, "From claim to end", ["kind"], buckets=(1, 3, 10, 30, 60, 180, 600, 1800, 7200))

WORKER = f"jobs@{socket.gethostname()}:{os.getpid()}"
TERM_GRACE_SECONDS = 8.0
FIRST_TO_GO = 500  # of 1000: as if a job held half of the machine's memory more than it does, for the kernel that looks for whom to kill
LOG_TAIL_BYTES = 2000
# Two heavy children on two cores fall to a tenth of their speed: one at a time, unless the machine is told otherwise.
_slots = threading.BoundedSemaphore(settings.JOB_SLOTS)
_stopping = threading.Event()


@app.task(name="dsportal.run_jobs", ignore_result=True)
def run_jobs() -> None:
    """Run queued jobs until none is left or all slots are taken. The message is a nudge: whoever comes too late finds nothing."""
    while not _stopping.is_set() and _slots.acquire(blocking=False):
        try:
            close_old_connections()
            job = jobs.claim_next(worker=WORKER)
            if job is None:
                return
            _run(job)
        finally:
            _slots.release()


def _run(job: Job) -> None:
    began = time.monotonic()
    try:
        _attempt(job)
    except (Problem, ArtifactDamaged) as refusal:
        jobs.fail(job, str(refusal))
    except (OSError, DatabaseError, ValueError, KeyError, TypeError) as error:
        # The row must say what happened, whatever it was; the traceback is in the log under the job's id.
        log.exception("job %s failed in the worker", job.pk)
        jobs.fail(job, f"{type(error).__name__} in the worker: {error}. The worker's log has more, under job {job.pk}.")
    job.refresh_from_db()
    jobs_total.labels(job.kind, job.status).inc()
    job_seconds.labels(job.kind).observe(time.monotonic() - began)


def _attempt(job: Job) -> None:
    row, run, work = specific(job), run_of(job.kind), work_folder(job)
    work.mkdir(parents=True, exist_ok=True)
    _require_space(work)
    result_file = work / "result.json"
    if not result_file.exists():  # else a former attempt died between the child's end and the row's
        outcome = _follow(job, row, run.prepare(row, work), work)
        if outcome is None:
            return
        result_file.with_suffix(".tmp").write_text(json.dumps(outcome))
        result_file.with_suffix(".tmp").rename(result_file)
    result = run.complete(row, json.loads(result_file.read_text()), work)
    if jobs.finish(job, result=result):
        run.succeeded(row)
        shutil.rmtree(work, ignore_errors=True)


def _require_space(work: Path) -> None:
    free = shutil.disk_usage(work).free
    if free < settings.MIN_FREE_BYTES:
        raise Problem(f"Only {free / 1024**2:.0f} MB are free on the disk of {settings.HOME}; make room and resume the job.")


def _follow(job: Job, row: Job, command: Command, work: Path) -> dict | None:
    """Run the child to its end. Its result; None where the job was cancelled, failed, or went to another worker."""
    spec = work / "spec.json"
    spec.write_text(json.dumps(command.spec, indent=1))
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **command.env}
    with (work / "log.txt").open("ab") as log_file:
        child = subprocess.Popen(
            [*command.argv, str(spec)], cwd=settings.BASE_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log_file,
            env=env, start_new_session=True,
        )  # fmt: skip
        _lower_priority(child.pid)
        try:
            return _listen(job, row, child, work)
        finally:
            _end(child)


def _lower_priority(pid: int) -> None:
    """Below web and inference. Linux groups processes by session and weighs the groups, so that the niceness of a process alone
    moves nothing between sessions; where there are no such groups, it is what counts. Where memory runs out it is the job that goes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, settings.JOB_NICENESS)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(settings.JOB_NICENESS))
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(FIRST_TO_GO))


class _Heard:
    """What a child said: kept until the next heartbeat writes it into rows."""

    def __init__(self, job: Job, row: Job):
        self.job, self.row = job, row
        self.result: dict | None = None
        self.error = ""
        self._fields: dict = {}
        self._events: list[JobEvent] = []

    def take(self, event: dict) -> None:
        name = event["event"]
        if name == "done":
            self.result = event["result"]
        elif name == "error":
            self.error = event["message"]
        elif name == "progress":
            self._fields = {k: event[k] for k in ("progress", "message", "eta_seconds") if k in event}
            self._fields["message"] = self._fields.get("message", "")[:300]
        elif own := run_of(self.job.kind).on_event(self.row, event):
            type(self.row).objects.filter(pk=self.row.pk).update(**own)
        if name in ("step", "sample", "stage", "note", "evaluation"):
            self._events.append(JobEvent(job_id=self.job.pk, kind=name, data={k: v for k, v in event.items() if k != "event"}))

    def write(self) -> bool:
        """Also the heartbeat. False: the job is no longer this worker's."""
        JobEvent.objects.bulk_create(self._events)
        self._events = []
        if not jobs.beat(self.job, **self._fields):
            return False
        self._fields = {}
        return True


def _listen(job: Job, row: Job, child: subprocess.Popen, work: Path) -> dict | None:
    """Write events as rows and the heartbeat every two seconds, until the child ends or the row says stop."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(child, lines), daemon=True).start()
    heard, open_pipe, last_beat = _Heard(job, row), True, 0.0
    while open_pipe and not _stopping.is_set():
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=0.25)
            open_pipe = line is not None
            if event := _parse(line):
                heard.take(event)
        if time.monotonic() - last_beat > settings.JOB_HEARTBEAT_SECONDS or not open_pipe:
            last_beat = time.monotonic()
            if not heard.write():
                _end(child)
                job.refresh_from_db()
                if job.status == Job.Status.RUNNING and job.cancel_requested:
                    jobs.settle_cancelled(job)
                return None
            if jobs.gives_way(job):
                _end(child)
                jobs.release(job, why="it made room for other work; goes on after it")
                return None
    if _stopping.is_set():
        _end(child)
    code = child.wait()
    if heard.result is not None and code == 0:
        return heard.result
    if _stopping.is_set():  # also where whoever stops the worker has stopped the child as well
        jobs.release(job, why="the worker was stopped; goes on when it is back")
    else:
        jobs.fail(job, heard.error or _died(code, work))
    return None


def _read_lines(child: subprocess.Popen, lines: queue.SimpleQueue) -> None:
    for line in child.stdout:
        lines.put(line)
    lines.put(None)


def _parse(line: bytes | None) -> dict | None:
    if not line:
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None  # something a library printed
    return event if isinstance(event, dict) and "event" in event else None


def _died(code: int, work: Path) -> str:
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += " (often: out of memory; try a smaller preset, batch or world size)"
    tail = (work / "log.txt").read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    return f"The work ended with {how}. The end of its log:\n{tail}"


def _end(child: subprocess.Popen) -> None:
    """SIGTERM to the child's whole session, SIGKILL to what is left after the grace."""
    for sign, grace in ((signal.SIGTERM, TERM_GRACE_SECONDS), (signal.SIGKILL, TERM_GRACE_SECONDS)):
        if child.poll() is not None:
            break
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            continue
    child.stdin.close()


@signals.worker_ready.connect
def _ready(sender, **_):
    if "jobs" in sender.hostname:
        keep_presence("jobs", WORKER)
        threading.Thread(target=run_jobs, daemon=True).start()


@signals.worker_shutting_down.connect
def _shutting_down(**_):
    _stopping.set()
