"""A version as another server loads it, made while it is downloaded: one tar with the SHA-256 of each of its files at the end."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from django.http import StreamingHttpResponse

from apps import artifacts
from apps.accounts.problems import Conflict
from apps.portal.retelling import retold
from apps.registry.models import ModelVersion
from workers.compression.applicable import unexportable
from workers.protocol import JobError

if TYPE_CHECKING:
    from workers.compression.w8a8_export import File

SUMS_FILE = "SHA256SUMS"
BLOCK_BYTES = tarfile.BLOCKSIZE


def w8a8(version: ModelVersion) -> StreamingHttpResponse:
    """An INT8 version for servers of W8A8 checkpoints (vLLM). Conflict where there is none, or its files are not those that were written."""
    from workers.compression.w8a8_export import files_of  # NumPy takes memory that a web process which exports nothing does not need

    if why := unexportable(version.kind, version.details):
        raise Conflict(retold(why))
    try:
        files = files_of(artifacts.verify(version.folder, version.files))
    except (artifacts.ArtifactDamaged, JobError) as error:
        raise Conflict(retold(str(error))) from error
    name = f"{version.name}-w8a8"
    tar = Tar(files, name, version.created_at)
    response = StreamingHttpResponse(tar.read(), content_type="application/x-tar")
    response["Content-Length"] = tar.size_bytes
    response["Content-Disposition"] = f'attachment; filename="{name}.tar"'
    return response


@dataclass(frozen=True)
class Tar:
    """Files below `folder`, as they are read, and `SHA256SUMS` after them (for `sha256sum -c`)."""

    files: Sequence["File"]
    folder: str
    time: datetime

    @property
    def size_bytes(self) -> int:
        """The length of what `read` gives."""
        sizes = {file.name: file.size_bytes for file in self.files}
        sizes[SUMS_FILE] = sum(len(_sum_line("0" * 64, name).encode()) for name in sizes)
        return sum(len(self._header(name, size)) + size + -size % BLOCK_BYTES for name, size in sizes.items()) + 2 * BLOCK_BYTES

    def read(self) -> Iterator[bytes]:
        sums = b""
        for file in self.files:
            digest = hashlib.sha256()
            yield self._header(file.name, file.size_bytes)
            for chunk in file.read():
                digest.update(chunk)
                yield chunk
            yield bytes(-file.size_bytes % BLOCK_BYTES)
            sums += _sum_line(digest.hexdigest(), file.name).encode()
        yield self._header(SUMS_FILE, len(sums)) + sums + bytes(-len(sums) % BLOCK_BYTES + 2 * BLOCK_BYTES)

    def _header(self, name: str, size: int) -> bytes:
        entry = tarfile.TarInfo(f"{self.folder}/{name}")
        entry.size, entry.mtime = size, int(self.time.timestamp())
        return entry.tobuf(tarfile.GNU_FORMAT)


def _sum_line(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"
