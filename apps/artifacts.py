"""Artifacts (datasets, processed folders, models) live below one fsspec URL; rows hold paths relative to it.

On a local folder nothing is copied: publishing is a rename. On object storage a folder is uploaded once and fetched into a
cache below the home when a worker needs it.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import fsspec
from django.conf import settings

from apps.ids import new_id

CHUNK_BYTES = 1 << 20


class ArtifactDamaged(Exception):
    """A file is not the one its row describes."""


@dataclass(frozen=True)
class ArtifactFile:
    name: str
    bytes: int
    sha256: str


def _is_local() -> bool:
    return "://" not in settings.ARTIFACTS_URL or settings.ARTIFACTS_URL.startswith("file://")


def _root() -> Path:
    return Path(settings.ARTIFACTS_URL.removeprefix("file://"))


def _remote(path: str):
    return fsspec.core.url_to_fs(f"{settings.ARTIFACTS_URL.rstrip('/')}/{path}")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(folder: Path) -> list[dict]:
    """Name, bytes and SHA-256 of every file below `folder`, sorted by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [asdict(ArtifactFile(str(p.relative_to(folder)), p.stat().st_size, sha256_of(p))) for p in files]


def publish(local: Path, path: str) -> None:
    """Move a finished file or folder to its place. Publishing again replaces it, so that a resumed job may repeat the step."""
    if _is_local():
        target = _root() / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            old = target.with_name(f".{target.name}.{new_id()}")
            target.rename(old)
            shutil.rmtree(old)
        try:
            local.rename(target)
        except OSError:  # the work folder is on another file system
            staged = target.with_name(f".{target.name}.{new_id()}")
            shutil.move(local, staged)
            staged.rename(target)
        return
    filesystem, remote = _remote(path)
    filesystem.put(str(local), remote, recursive=local.is_dir())
    shutil.rmtree(local) if local.is_dir() else local.unlink()


def local_path(path: str) -> Path:
    """Where a worker finds the artifact on its own disk; fetched first when the store is remote."""
    if _is_local():
        return _root() / path
    cached = settings.HOME / "cache" / path
    if not cached.exists():
        filesystem, remote = _remote(path)
        staged = cached.with_name(f".{cached.name}.{new_id()}")
        staged.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get(remote, str(staged), recursive=True)
        staged.rename(cached)
    return cached


def open_file(path: str) -> IO[bytes]:
    if _is_local():
        return (_root() / path).open("rb")
    filesystem, remote = _remote(path)
    return filesystem.open(remote, "rb")


def read_chunks(path: str) -> Iterator[bytes]:
    with open_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def verify(path: str, files: list[dict]) -> Path:
    """The local folder, once every file's bytes and SHA-256 are those of its row. Raises ArtifactDamaged, naming the file."""
    folder = local_path(path)
    for entry in files:
        file = folder / entry["name"]
        if not file.is_file():
            raise ArtifactDamaged(f"{path}/{entry['name']} is missing; restore it from a backup or make the version again.")
        if file.stat().st_size != entry["bytes"] or sha256_of(file) != entry["sha256"]:
            raise ArtifactDamaged(f"{path}/{entry['name']} was changed after it was written (its SHA-256 differs).")
    return folder


def discard(path: str) -> None:
    if _is_local():
        target = _root() / path
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        return
    filesystem, remote = _remote(path)
    filesystem.rm(remote, recursive=True)
