"""`python -m workers.corpus SPEC.json`: one processing run."""

import time
from typing import Any

from workers.corpus.pipeline import process
from workers.corpus.reading import UnreadableFile
from workers.corpus.spec import ProcessSpec
from workers.protocol import JobError, emit, run


def main(spec: ProcessSpec) -> dict[str, Any]:
    began = time.monotonic()

    def progress(share: float, message: str) -> None:
        spent = time.monotonic() - began
        emit("progress", progress=share, message=message, eta_seconds=spent / share * (1 - share) if share else None)

    try:
        report = process(spec, progress)
    except UnreadableFile as error:
        raise JobError(str(error)) from error
    return {"funnel": report["funnel"], "seconds": time.monotonic() - began}


if __name__ == "__main__":
    run(main, ProcessSpec)
