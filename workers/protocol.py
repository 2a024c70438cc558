"""The child's side of a job: events out, the spec in, a quick end (docs/architecture.md, "Jobs are rows, work is a child process")."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Spec = TypeVar("Spec", bound=BaseModel)

_emitting = threading.Lock()


class JobError(Exception):
    """The work cannot be done. The message is for people: what, why, what to do next."""


def emit(event: str, **data: Any) -> None:
    """Write one event as a JSON line to stdout, at once; safe from any thread."""
    line = json.dumps({"event": event, **data}, ensure_ascii=False) + "\n"
    with _emitting:
        sys.stdout.write(line)
        sys.stdout.flush()


def die_with_parent() -> None:
    """End this process as soon as stdin closes, which is what happens when the worker that started it dies."""

    def watch() -> None:
        # os.read, not sys.stdin: a thread blocked in the buffered reader holds a lock that aborts a normal exit.
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def run(main: Callable[[Spec], dict[str, Any]], spec_model: type[Spec]) -> None:
    """Run one job: read the spec that argv[1] names, call `main`, emit its result as `done`.

    A JobError becomes the error event and exit code 1. Any other exception is a defect: its traceback goes to stderr, the log.
    """
    signal.signal(signal.SIGTERM, _leave)
    die_with_parent()
    try:
        result = main(_read_spec(spec_model))
    except JobError as error:
        emit("error", message=str(error))
        raise SystemExit(1) from error
    emit("done", result=result)


def _read_spec(spec_model: type[Spec]) -> Spec:
    if len(sys.argv) != 2:
        raise JobError("Name exactly one file, the job's spec: python -m workers.<package> SPEC.json")
    path = Path(sys.argv[1])
    try:
        return spec_model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise JobError(f"The job's spec {path} cannot be read: {error.strerror}. Queue the job again.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'spec'}: {e['msg']}" for e in error.errors())
        raise JobError(f"The job's spec is not valid ({wrong}). Queue the job again with other options.") from error
