"""Imports: a Hugging Face folder from elsewhere becomes a version, or a PEFT folder with its parent."""

import json
import re
import shutil
import sys
from pathlib import Path

import fsspec
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.utils.translation import gettext as _

from apps import artifacts
from apps.accounts.models import User
from apps.accounts.problems import Conflict, Problem
from apps.accounts.services import record
from apps.ids import new_id
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.jobs.runs import Command, Run, register
from apps.portal.retelling import retold
from apps.registry.models import ImportJob, ModelVersion
from apps.registry.services import evaluate, newest_set, register_version, take_naming_turn
from workers.moe import UnsupportedModel, quantization_of

MAX_SOURCE = 500  # characters of a folder's path or a URL
UPLOADED = "upload-"  # begins the names of folders that came over REST
MAX_CONFIG_BYTES = 1 << 20
MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTABLE = (ModelVersion.Kind.MOE, ModelVersion.Kind.DENSE, ModelVersion.Kind.DISTILLED)  # in floating point, as they were trained


@transaction.atomic
def import_model(*, name: str, path: str, actor: User | None, parent: ModelVersion | None = None, source: str = "") -> ImportJob:
    """Queue the import of a Hugging Face folder below an import root, or at a URL that the settings allow. With a parent: of a PEFT folder."""
    take_naming_turn()
    name = free_name(name)
    if parent is not None and parent.kind not in ADAPTABLE:
        raise Problem(
            _("%(name)s is %(kind)s; an adapter is added to an uncompressed version.") % {"name": parent.name, "kind": parent.get_kind_display()},
            field="parent",
        )
    if "://" in (path or ""):
        place = _import_url(path)
    else:
        place = str(folder := _import_folder(path, _config_file(parent)))
        if parent is None:
            with (folder / MODEL_CONFIG).open("rb") as file:
                _require_readable(file.read(MAX_CONFIG_BYTES), "path")
    options = {"parent": parent.pk} if parent is not None else {}
    job = ImportJob.objects.create(title=f"Import {name}", name=name, source=place, options=options, created_by=actor)
    record(actor, "version.import", job, after={"name": name, "path": place, **options}, source=source)
    jobs.nudge()
    return job


def import_uploads(*, name: str, uploads: list[UploadedFile], actor: User | None, parent: ModelVersion | None = None, source: str = "") -> ImportJob:
    """The files of a Hugging Face folder, as they were sent; they are removed once the version is there."""
    name = free_name(name)
    names = [Path(upload.name or "").name for upload in uploads]
    if _config_file(parent) not in names or not any(n.endswith(".safetensors") for n in names):
        raise Problem(
            _("Send the files of a Hugging Face folder: config.json, tokenizer.json and the .safetensors files.")
            if parent is None
            else _("Send the files of a PEFT folder: adapter_config.json and adapter_model.safetensors."),
            field="files",
        )
    if len(set(names)) < len(names):
        raise Problem(_("Two of the files have the same name."), field="files")
    if parent is None:
        config_json = uploads[names.index(MODEL_CONFIG)]
        _require_readable(config_json.read(MAX_CONFIG_BYTES), "files")
        config_json.seek(0)
    folder = settings.HOME / "imports" / f"{UPLOADED}{new_id()}"
    folder.mkdir(parents=True)
    try:
        for upload, file_name in zip(uploads, names, strict=True):
            with (folder / file_name).open("wb") as file:
                for chunk in upload.chunks(artifacts.CHUNK_BYTES):
                    file.write(chunk)
        return import_model(name=name, path=str(folder), actor=actor, parent=parent, source=source)
    except (OSError, Problem):
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _config_file(parent: ModelVersion | None) -> str:
    return MODEL_CONFIG if parent is None else ADAPTER_CONFIG


def _require_readable(config_json: bytes, field: str) -> None:
    """Problem where the weights are quantized as nothing here reads, while nobody has waited yet. What else is wrong, the job says."""
    try:
        described = json.loads(config_json)
        if isinstance(described, dict):
            quantization_of(described)
    except UnsupportedModel as error:
        raise Problem(retold(str(error)), field=field) from error
    except (ValueError, AttributeError, KeyError, TypeError):
        return


def free_name(name: str) -> str:
    """The name without blanks around it. Problem, or Conflict where a version has it or is about to; sure only after `take_naming_turn`."""
    name = (name or "").strip()
    if not re.fullmatch(r"[\w.\- ]{1,60}", name):
        raise Problem(_("Give a name of letters, digits, dots, dashes and spaces, at most 60."), field="name")
    waiting = ImportJob.objects.filter(name=name, status__in=(Job.Status.QUEUED, Job.Status.RUNNING))
    if ModelVersion.objects.filter(name=name).exists() or waiting.exists():
        raise Conflict(_("There is a version named %(name)s already.") % {"name": name}, field="name")
    return name


def _import_url(url: str) -> str:
    below = any(url.startswith(allowed.rstrip("/") + "/") for allowed in settings.IMPORT_URLS)  # s3://models is not s3://models-of-others
    # fsspec chains protocols at "::", whereby an allowed beginning could lead anywhere.
    if below and ".." not in url and "::" not in url and len(url) <= MAX_SOURCE:
        return url
    allowed = ", ".join(settings.IMPORT_URLS) or "none"
    raise Problem(
        _("Models may not be imported from %(url)s. DSPORTAL_IMPORT_URLS names the beginnings that are allowed; now: %(allowed)s.")
        % {"url": repr(url[:100]), "allowed": allowed},
        field="path",
    )


def _import_folder(path: str, config_file: str) -> Path:
    """The folder, if it lies below an import root; a link that leads out of it does not."""
    asked = Path(path or "")
    candidates = [asked] if asked.is_absolute() else [root / asked for root in settings.IMPORT_ROOTS]
    for candidate in candidates if len(path or "") <= MAX_SOURCE and "\0" not in (path or "") else []:
        resolved = candidate.resolve()
        if any(resolved.is_relative_to(root.resolve()) for root in settings.IMPORT_ROOTS) and (resolved / config_file).is_file():
            return resolved
    raise Problem(
        _("%(path)s is not a Hugging Face folder (with %(file)s) below an import root: put it in DSPORTAL_HOME/imports.")
        % {"path": repr(path[:100]), "file": config_file},
        field="path",
    )


def _prepare_import(job: ImportJob, work: Path) -> Command:
    folder = job.source
    parent = _parent_of(job)
    if "://" in folder:
        folder = str(work / "source")
        try:
            filesystem, remote = fsspec.core.url_to_fs(job.source)
            if parent is None:
                _require_readable(filesystem.cat_file(remote.rstrip("/") + "/config.json"), "path")  # before gigabytes come
            filesystem.get(remote.rstrip("/") + "/", folder, recursive=True)
        except (OSError, ImportError, ValueError) as error:
            raise Problem(f"{job.source} cannot be fetched: {error}") from error
    spec = {"version": 1, "source_folder": folder, "output_folder": str(work / "model"), "work_folder": str(work)}
    if parent is not None:
        spec["parent_folder"] = str(artifacts.verify(parent.folder, parent.files))
    return Command([sys.executable, "-m", "workers.moe"], spec, {"OMP_NUM_THREADS": "1"})


def _complete_import(job: ImportJob, result: dict, work: Path) -> dict:
    existing, parent = job.model_version, _parent_of(job)
    version = existing or register_version(
        kind=result["kind"],
        folder=work / "model",
        parent=parent,
        run=parent.run if parent else None,
        result=result,
        actor=job.created_by,
        name=job.name,
    )
    ImportJob.objects.filter(pk=job.pk).update(model_version=version)
    if newest_set():
        evaluate(version=version, actor=job.created_by)
    return {"model_version": version.pk, "folder": version.folder}


def _before_resume(job: ImportJob) -> None:
    """Another may have its name by now."""
    take_naming_turn()
    if job.model_version_id is None:
        free_name(job.name)


def _parent_of(job: ImportJob) -> ModelVersion | None:
    """The version that an adapter is added to."""
    pk = job.options.get("parent")
    return ModelVersion.objects.get(pk=pk) if pk else None


def _imported(job: Job) -> None:
    folder = Path(job.source)  # run.succeeded is given the job's own row
    if folder.name.startswith(UPLOADED) and folder.parent == settings.HOME / "imports":
        shutil.rmtree(folder, ignore_errors=True)


register(Job.Kind.IMPORT, Run(_prepare_import, _complete_import, succeeded=_imported, before_resume=_before_resume))
