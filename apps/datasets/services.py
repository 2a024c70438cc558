"""Uploading and processing datasets."""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.utils.translation import gettext as _

from apps import artifacts
from apps.accounts.models import User
from apps.accounts.problems import Conflict, Problem, TooLarge
from apps.accounts.services import record
from apps.datasets.models import Dataset, ProcessingRun
from apps.ids import new_id
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.jobs.runs import Command, Run, register
from apps.portal.retelling import retold
from apps.portal.templatetags.portal import percent
from apps.registry.models import EvaluationSet
from workers.corpus.reading import UnreadableFile, inspect_file

MAX_FILE_NAME_BYTES = 120


def too_large_message() -> str:
    return _("The file is larger than %(n)s MB. Split it, or raise DSPORTAL_MAX_UPLOAD_BYTES.") % {"n": f"{settings.MAX_UPLOAD_BYTES / 1024**2:,.0f}"}


def _file_name(offered: str | None) -> str:
    """The end of the offered name, short enough for any file system in bytes too."""
    name = Path(offered or "").name.encode("utf-8", "ignore")[-MAX_FILE_NAME_BYTES:].decode("utf-8", "ignore").lstrip(".")
    return name or "data"


def _receive(upload: UploadedFile, target: Path) -> str:
    """Write the upload to `target` in chunks; returns its SHA-256. Raises TooLarge."""
    digest, written = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in upload.chunks(artifacts.CHUNK_BYTES):
            written += len(chunk)
            if written > settings.MAX_UPLOAD_BYTES:
                raise TooLarge(too_large_message(), field="file")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _name(name: str) -> str:
    name = (name or "").strip()
    if not name:
        raise Problem(_("Give the dataset a name."), field="name")
    if len(name) > 120:
        raise Problem(_("The name is longer than 120 characters."), field="name")
    return name


def create_from_upload(*, name: str, upload: UploadedFile | None, actor: User, source: str = "") -> Dataset:
    name = _name(name)
    if upload is None:
        raise Problem(_("Choose a file: JSONL, CSV, Parquet or plain text."), field="file")
    settings.WORK_ROOT.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=settings.WORK_ROOT))
    try:
        path = staged / _file_name(upload.name)
        _receive(upload, path)
        return create_from_files(name=name, paths=[path], origin=Dataset.Origin.UPLOAD, actor=actor, source=source)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def create_from_records(*, name: str, records: Iterable[dict], actor: User | None, origin: str = Dataset.Origin.UPLOAD, source: str = "") -> Dataset:
    name = _name(name)
    settings.WORK_ROOT.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=settings.WORK_ROOT))
    try:
        path = staged / "records.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in records:
                if not isinstance(row, dict):
                    raise Problem(_('Each record must be an object with fields, such as {"text": "…"}.'), field="records")
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return create_from_files(name=name, paths=[path], origin=origin, actor=actor, source=source)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def create_from_files(*, name: str, paths: list[Path], origin: str, actor: User | None, source: str = "") -> Dataset:
    """Check that the files can be read, move them to the artifacts and write the row. The files at `paths` are moved away."""
    formats = set()
    for path in paths:
        try:
            formats.add(inspect_file(path).format)
        except UnreadableFile as error:
            raise Problem(retold(str(error)), field="file") from error
    dataset = Dataset(id=new_id(), name=name, origin=origin, format=sorted(formats)[0] if len(formats) == 1 else "mixed", created_by=actor)
    for index, path in enumerate(paths):
        stored = f"datasets/{dataset.pk}/{index:02d}-{path.name}"
        entry = {"path": stored, "name": path.name, "bytes": path.stat().st_size, "sha256": artifacts.sha256_of(path)}
        artifacts.publish(path, stored)
        dataset.files.append(entry)
    dataset.bytes = sum(entry["bytes"] for entry in dataset.files)
    with transaction.atomic():
        dataset.save()
        record(actor, "dataset.create", dataset, after={"name": name, "bytes": dataset.bytes, "origin": origin}, source=source)
    return dataset


@transaction.atomic
def process(*, dataset: Dataset, actor: User | None, options: dict | None = None, source: str = "") -> ProcessingRun:
    _require_idle(dataset)
    run = ProcessingRun.objects.create(dataset=dataset, title=f"Process {dataset.name}"[:200], options=options or {}, created_by=actor)
    record(actor, "dataset.process", dataset, after={"run": run.pk}, source=source)
    jobs.nudge()
    return run


def _require_idle(dataset: Dataset) -> None:
    """Conflict while it is being processed; whoever else is about to process it waits."""
    jobs.take_turn(dataset)
    active = ProcessingRun.objects.filter(dataset=dataset, status__in=(Job.Status.QUEUED, Job.Status.RUNNING)).first()
    if active:
        raise Conflict(
            _("This dataset is already being processed (%(progress)s); wait for it or cancel it first.") % {"progress": percent(active.progress)},
            job=active.pk,
        )


def _prepare(run: ProcessingRun, work: Path) -> Command:
    spec = {
        "version": 1,
        "inputs": [str(artifacts.local_path(entry["path"])) for entry in run.dataset.files],
        "output_folder": str(work / "processed"),
        "work_folder": str(work),
        "seed": run.options.get("seed", 0),
    }
    return Command([sys.executable, "-m", "workers.corpus"], spec, {"OMP_NUM_THREADS": "1"})


def _complete(run: ProcessingRun, result: dict, work: Path) -> dict:
    """Publish the folder, freeze its held-out questions as an evaluation set, and make this the dataset's current run."""
    produced = work / "processed"
    report = json.loads((produced / "report.json").read_text())
    evaluation = produced / "eval.jsonl"
    sha256 = artifacts.sha256_of(evaluation)
    kinds = [json.loads(line)["kind"] for line in evaluation.read_text(encoding="utf-8").splitlines()]
    folder = f"processed/{run.pk}"
    artifacts.publish(produced, folder)
    with transaction.atomic():
        ProcessingRun.objects.filter(pk=run.pk).update(folder=folder, report=report)
        rows = {entry["stage"]: entry["rows"] for entry in report["funnel"]}
        Dataset.objects.filter(pk=run.dataset_id).update(current_run=run.pk, raw_rows=rows.get("raw"), used_rows=rows.get("used"))
        if kinds:
            EvaluationSet.objects.get_or_create(
                sha256=sha256,
                defaults={
                    "run_id": run.pk,
                    "path": f"{folder}/eval.jsonl",
                    "questions": kinds.count("question"),
                    "claims": kinds.count("claim"),
                },
            )
    return {"folder": folder, "funnel": report["funnel"]}


def _before_resume(run: ProcessingRun) -> None:
    _require_idle(run.dataset)


register(Job.Kind.PROCESSING, Run(_prepare, _complete, before_resume=_before_resume))
