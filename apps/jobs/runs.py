"""How one kind of job is run: what the worker asks the job's app for, and what it tells it.

Each app registers one `Run` for its kind; `workers.tasks.jobs` knows only this shape.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from apps.jobs.models import Job


@dataclass(frozen=True)
class Command:
    """A child process: its arguments (the spec's path is added last), the spec, environment beside the worker's own."""

    argv: list[str]
    spec: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    prepare: Callable[[Job, Path], Command]  # may raise Problem: the job fails with its message
    complete: Callable[[Job, dict, Path], dict]  # publishes artifacts and writes rows; returns the job's result
    on_event: Callable[[Job, dict], dict] = lambda job, event: {}  # fields of the job's own table to update
    succeeded: Callable[[Job], None] = lambda job: None  # after the row says so
    # In the transaction that would queue it again: Conflict where another that does the same is under way (`services.require_alone`).
    before_resume: Callable[[Job], None] = lambda job: None


_RUNS: dict[str, Run] = {}


def register(kind: str, run: Run) -> None:
    _RUNS[kind] = run


def run_of(kind: str) -> Run:
    return _RUNS[kind]


def work_folder(job: Job) -> Path:
    return settings.WORK_ROOT / job.pk


def specific(job: Job) -> Job:
    """The row of the job's own table: a TrainingJob for a job of kind training."""
    child = {
        "processing": "processingrun",
        "training": "trainingjob",
        "evaluation": "evaluation",
        "compression": "compressionjob",
        "import": "importjob",
        "batch": "batchjob",
    }
    return getattr(job, child[job.kind])
