"""The demonstration: the loop's first turn, on the corpus in the repository.

`advance` looks at the rows and takes the one next step, if its time has come. It may be called at any time, by anybody, and
again after any crash.
"""

import logging
import shutil
import tempfile
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from apps.accounts.problems import Conflict, Problem
from apps.datasets import services as datasets
from apps.datasets.models import Dataset
from apps.demonstration.models import Demonstration
from apps.jobs.models import Job
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from apps.registry.selectors import live_version
from apps.training import services as training

log = logging.getLogger(__name__)

CORPUS = Path(settings.BASE_DIR) / "demo"
# Steps, not minutes, so that a slow machine makes the same versions, later. The first still confuses its facts (a BLEU of some 10 to 50), the
# second knows them (above 95): a gain that the gate sees.
FIRST_STEPS, SECOND_STEPS = 340, 720
FAILED = (Job.Status.FAILED, Job.Status.CANCELLED)


def begin() -> Demonstration | None:
    """On a home without data: remember that the demonstration is to run."""
    if not settings.DEMO or Demonstration.objects.exists() or Dataset.objects.exists():
        return None
    return Demonstration.objects.create()


def advance() -> None:
    demo = Demonstration.objects.filter(status=Demonstration.Status.RUNNING).first()
    if demo is None:
        return
    try:
        with transaction.atomic():
            # Locked, so that two workers do not both take the same step.
            _next_step(Demonstration.objects.select_for_update().get(pk=demo.pk))
    except Problem as problem:
        _stop(demo, problem.detail)


def _next_step(demo: Demonstration) -> None:
    for job in (demo.run, demo.first_job, demo.second_job, demo.compression):
        if job and job.status in FAILED:
            return _stop(demo, f"{job.title}: {job.error or job.status}")
    if demo.dataset is None:
        demo.dataset = _ingest()
        demo.run = datasets.process(dataset=demo.dataset, actor=None)
    elif demo.run.status != Job.Status.SUCCEEDED:
        return None
    elif demo.first_job is None:
        demo.first_job = training.start(dataset=demo.dataset, steps=FIRST_STEPS, actor=None)
    elif (first := _evaluated(demo.first_job)) is None:
        return _stop_if_not_evaluated(demo, demo.first_job)
    elif demo.second_job is None:
        _put_live(first)
        demo.second_job = training.start(dataset=demo.dataset, steps=SECOND_STEPS, parent=first, actor=None)
    elif (second := _evaluated(demo.second_job)) is None:
        return _stop_if_not_evaluated(demo, demo.second_job)
    elif demo.compression is None:
        if live_version() is None:  # the first one had too little time on this machine: then the second is the first to answer
            _put_live(second)
        demo.compression = registry.compress(version=second, method="int8", options={}, actor=None)
    elif _evaluated(demo.compression) is None:
        return _stop_if_not_evaluated(demo, demo.compression)
    else:
        demo.status, demo.finished_at = Demonstration.Status.DONE, timezone.now()
    demo.save()
    return None


def _put_live(version: ModelVersion) -> None:
    """Where the gate refuses, which its decision tells, the demonstration goes on: training longer is what helps."""
    try:
        registry.promote(version=version, actor=None, source="demonstration")
    except Conflict as refusal:
        log.warning("the demonstration's %s is not live: %s", version.name, refusal.detail)


def _ingest() -> Dataset:
    """The corpus, copied: uploading moves the files away."""
    settings.WORK_ROOT.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=settings.WORK_ROOT))
    try:
        paths = []
        for file in sorted(CORPUS.rglob("*.jsonl")):
            copy = staged / f"{file.parent.name}-{file.name}"
            shutil.copyfile(file, copy)
            paths.append(copy)
        return datasets.create_from_files(name="demo", paths=paths, origin=Dataset.Origin.DEMO, actor=None)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _version(job) -> ModelVersion | None:
    if hasattr(job, "preset"):
        return ModelVersion.objects.filter(training_job=job).first()
    return ModelVersion.objects.filter(compression_job=job).first()


def _evaluated(job) -> ModelVersion | None:
    version = _version(job) if job.status == Job.Status.SUCCEEDED else None
    return version if version and version.evaluations.filter(status=Job.Status.SUCCEEDED).exists() else None


def _stop_if_not_evaluated(demo: Demonstration, job) -> None:
    version = _version(job)
    failed = version and version.evaluations.filter(status__in=FAILED).first()
    if failed:
        _stop(demo, f"{failed.title}: {failed.error or failed.status}")


def _stop(demo: Demonstration, why: str) -> None:
    Demonstration.objects.filter(pk=demo.pk).update(status=Demonstration.Status.STOPPED, error=why[:2000], finished_at=timezone.now())
