"""Batches: a file of prompts, or a dataset's questions, answered by one version while nobody waits."""

import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.utils.translation import gettext as _

from apps import artifacts
from apps.accounts.models import User
from apps.accounts.problems import Problem, TooLarge
from apps.accounts.services import record
from apps.batches.models import BatchJob
from apps.datasets.models import Dataset
from apps.datasets.services import too_large_message
from apps.ids import new_id
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.jobs.runs import Command, Run, register
from apps.monitoring.advisor.memory import size
from apps.portal.retelling import retold
from apps.registry.models import ModelVersion
from apps.registry.upstream_access import require_allowed, spec_of
from apps.serving.questions import MAX_CHARACTERS, MAX_TOKENS
from workers.batch.prompts import read_prompts
from workers.planning import USABLE_SHARE, free_bytes, machine_bytes

ROWS_LOOKED_AT = 200  # before it is queued: a wrong file is told at once, single bad rows in their answers
ANSWERS_FILE = "answers.jsonl"
# After all that somebody waits for, and interrupted by it: a batch takes what is left.
PRIORITY = -1
PROCESS_BYTES = 300 * 1024**2  # of the child without a model: Python, the compiled decoder, its buffers


def start(
    *, version: ModelVersion, dataset: Dataset | None = None, upload: UploadedFile | None = None, records: list[dict] | None = None,
    max_tokens: int = 256, temperature: float = 0.0, system: str = "", seed: int = 0, actor: User | None, source: str = "",
) -> BatchJob:  # fmt: skip
    """Queue it, with one of dataset, upload and records. Problem."""
    if sum(given is not None for given in (dataset, upload, records)) != 1:
        raise Problem(_("Give a dataset, a file or records: one of the three."), field="dataset", fields=["dataset", "file", "records"])
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise Problem(_("max_tokens must be between 1 and %(most)s.") % {"most": MAX_TOKENS}, field="max_tokens")
    if not 0 <= temperature <= 2:
        raise Problem(_("The temperature must be between 0 and 2."), field="temperature")
    if len(system) > MAX_CHARACTERS:
        raise Problem(_("At most %(most)s characters can be read.") % {"most": f"{MAX_CHARACTERS:,}"}, field="system")
    if version.kind == ModelVersion.Kind.UPSTREAM:
        require_allowed(spec_of(version))
    elif (needed := memory_bytes(version)) > (room := USABLE_SHARE * machine_bytes()):
        raise Problem(
            _("A batch has an engine of its own: for %(version)s it takes %(needed)s, and this machine has %(room)s to give. Choose a smaller version, its INT8 child say.")
            % {"version": version.name, "needed": size(needed), "room": size(room)},
            field="model_version",
        )  # fmt: skip
    options = {"max_tokens": max_tokens, "temperature": temperature, "system": system.strip(), "seed": seed}
    job = BatchJob(id=new_id(), model_version=version, dataset=dataset, options=options, created_by=actor, priority=PRIORITY)
    if dataset is not None:
        job.prompts_name = dataset.name
        _require_prompts(_files_of(dataset), "dataset")
    else:
        job.prompts_name = Path(upload.name or "prompts.jsonl").name[:120] if upload else "prompts.jsonl"
        job.prompts = f"batches/{job.pk}/prompts.jsonl"
        _keep(upload, records, job.prompts)
    job.title = f"Answer {job.prompts_name} with {version.name}"[:200]
    with transaction.atomic():
        job.save()
        record(actor, "batch.start", job, after={"version": version.name, "prompts": job.prompts_name, **options}, source=source)
        jobs.nudge()
    return job


def memory_bytes(version: ModelVersion) -> int:
    """What its engine takes at most."""
    return version.artifact_bytes + settings.ENGINE_CACHE_BYTES + PROCESS_BYTES


def _files_of(dataset: Dataset) -> list[Path]:
    if any(not entry["name"].lower().endswith((".jsonl", ".ndjson", ".json")) for entry in dataset.files):
        raise Problem(_("The dataset %(name)s is not in JSONL; prompts are read from JSONL only.") % {"name": dataset.name}, field="dataset")
    return [artifacts.local_path(entry["path"]) for entry in dataset.files]


def _keep(upload: UploadedFile | None, records: list[dict] | None, stored: str) -> None:
    """Write the prompts down, look at the first of them, and publish the file."""
    settings.WORK_ROOT.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=settings.WORK_ROOT))
    try:
        path = staged / "prompts.jsonl"
        with path.open("wb") as file:
            for size, chunk in _chunks(upload, records):
                if size > settings.MAX_UPLOAD_BYTES:
                    raise TooLarge(too_large_message(), field="file")
                file.write(chunk)
        _require_prompts([path], "file" if upload else "records")
        artifacts.publish(path, stored)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _chunks(upload: UploadedFile | None, records: list[dict] | None) -> Iterator[tuple[int, bytes]]:
    """Each with the bytes so far."""
    pieces = upload.chunks(artifacts.CHUNK_BYTES) if upload else (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in records or ())
    size = 0
    for piece in pieces:
        size += len(piece)
        yield size, piece


def _require_prompts(files: list[Path], field: str) -> None:
    """Problem where none of the first rows asks anything: then it is the wrong file."""
    looked = list(itertools.islice(read_prompts(files), ROWS_LOOKED_AT))
    if not looked:
        raise Problem(_("There is no row in it. Send JSONL: one JSON object a line, with a prompt, a question or messages."), field=field)
    if all(prompt.wrong for prompt in looked):
        raise Problem(
            _("None of the first rows can be asked (%(reason)s). Send JSONL: one JSON object a line, with a prompt, a question or messages.")
            % {"reason": retold(looked[0].wrong)},
            field=field,
        )


def _prepare(job: BatchJob, work: Path) -> Command:
    version = job.model_version
    if version.kind == ModelVersion.Kind.UPSTREAM:
        require_allowed(spec_of(version))
    elif (needed := memory_bytes(version)) > (free := free_bytes()):  # those who answer people keep what they have
        raise Problem(
            f"The batch's engine takes up to {size(needed)}, and only {size(free)} of this machine's memory is free; resume the job when there is more."
        )
    inputs = [artifacts.local_path(job.prompts)] if job.prompts else _files_of(job.dataset)
    spec = {
        "version": 1, "model_folder": str(artifacts.verify(version.folder, version.files)), "inputs": [str(path) for path in inputs],
        "output_folder": str(work / "answers"), "work_folder": str(work), "threads": settings.JOB_THREADS,
        "cache_bytes": settings.ENGINE_CACHE_BYTES, **job.options,
    }  # fmt: skip
    return Command([sys.executable, "-m", "workers.batch"], spec)


def _complete(job: BatchJob, result: dict, work: Path) -> dict:
    folder = f"batches/{job.pk}/answers"
    artifacts.publish(work / "answers", folder)
    BatchJob.objects.filter(pk=job.pk).update(answers=f"{folder}/{ANSWERS_FILE}")
    return result


register(Job.Kind.BATCH, Run(_prepare, _complete))
