"""What is answered already: a line a row, written when it is done, so that whoever goes on repeats nothing."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

SYNC_SECONDS = 1.0  # what a power cut may cost; the death of the process costs nothing


class Journal:
    """Append-only. A line that was cut off by the death of its writer is taken away when the file is opened again."""

    def __init__(self, path: Path):
        self._path = path
        self._file: BinaryIO | None = None
        self._synced = 0.0
        self.done: set[int] = set()

    def __enter__(self) -> "Journal":
        whole = 0
        if self._path.exists():
            for line in self._lines():
                self.done.add(json.loads(line)["row"])
                whole += len(line)
            os.truncate(self._path, whole)
        self._file = self._path.open("ab")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._file is not None
        self._sync()
        self._file.close()

    def write(self, entry: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.done.add(entry["row"])
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _lines(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                yield line

    def in_order(self) -> Iterator[bytes]:
        """All lines, by row: where each begins is kept, not the text."""
        places: dict[int, int] = {}
        at = 0
        for line in self._lines():
            places[json.loads(line)["row"]] = at
            at += len(line)
        with self._path.open("rb") as file:
            for row in sorted(places):
                file.seek(places[row])
                yield file.readline()
