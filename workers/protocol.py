"""The child side of a job: a spec in, events out (docs/architecture.md). Every `python -m workers.<package>` goes through `run`."""

import json
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Spec = TypeVar("Spec", bound=BaseModel)

EXIT_ERROR = 1
EXIT_ORPHANED = 3
EXIT_TERMINATED = 128 + signal.SIGTERM

_write_lock = threading.Lock()


class JobError(Exception):
    """The work cannot be done. The message is for people: what, why, what to do."""


def emit(event: str, **data: Any) -> None:
    """Write one event as a JSON line to stdout, whole and at once: threads may emit too. NaN and infinity become null."""
    line = json.dumps({"event": event, **_finite(data)}, ensure_ascii=False, allow_nan=False) + "\n"
    with _write_lock:
        sys.stdout.buffer.write(line.encode())
        sys.stdout.buffer.flush()


def _finite(value: Any) -> Any:
    """JSON knows no NaN; a diverged loss must not make the whole event unreadable."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def die_with_parent() -> None:
    """End this process at once when whoever started it is gone: another may start the same work again.

    A parent that holds our stdin as a pipe is gone when the pipe ends. A torchrun rank also ends with torchrun, which shares
    that pipe with it; killed, torchrun would leave its ranks behind.
    """
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # a terminal or /dev/null has no parent at its other end
        threading.Thread(target=_wait_for_end_of_file, daemon=True).start()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_wait_for_another_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_end_of_file() -> None:
    while True:
        try:
            if not os.read(0, 4096):
                break
        except OSError:
            break  # closed before it was read: the same news
    os._exit(EXIT_ORPHANED)


def _wait_for_another_parent(parent: int, poll_seconds: float = 0.5) -> None:
    while os.getppid() == parent:
        time.sleep(poll_seconds)
    os._exit(EXIT_ORPHANED)


def run(main: Callable[[Spec], dict[str, Any] | None], spec_model: type[Spec]) -> None:
    """Read the spec named by `argv[1]`, call `main` with it and emit `done` with what it returns.

    `main` raises JobError where the work cannot be done: an `error` event and exit code 1. A rank that has nothing to report
    returns None. SIGTERM ends the process at once; unfinished files have temporary names. Anything else raised is a fault of
    ours: its traceback goes to stderr, the job's log.
    """
    signal.signal(signal.SIGTERM, _terminated)
    die_with_parent()
    try:
        result = main(_read_spec(spec_model))
    except JobError as error:
        emit("error", message=str(error))
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if ran_out_of_memory(error):
            emit("error", message="The machine ran out of memory. Use a smaller model, batch or dataset, or a machine with more of it.")
            sys.exit(EXIT_ERROR)
        if refused := _refused_by_system(error):
            where = f" ({refused.filename})" if refused.filename else ""
            emit("error", message=f"A file could not be read or written{where}: {refused.strerror or refused}. Check the disk, then resume the job.")
        raise
    if result is not None:
        emit("done", result=result)


def ran_out_of_memory(error: BaseException) -> bool:
    """PyTorch tells of it by a RuntimeError, on a CPU by a plain one."""
    said = str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said))


def _refused_by_system(error: Exception) -> OSError | None:
    """Libraries in Rust (safetensors, tokenizers) raise exceptions of their own for a full disk, which name the system's error by its number."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _terminated(number: int, frame: FrameType | None) -> None:
    # At once: a long product in C would hold back an exception until it returns, and the supervisor's grace is short.
    os._exit(EXIT_TERMINATED)


def _read_spec(spec_model: type[Spec]) -> Spec:
    if len(sys.argv) != 2:
        raise JobError(f"Usage: python -m workers.<package> SPEC.json ({len(sys.argv) - 1} arguments were given, not one)")
    path = Path(sys.argv[1])
    try:
        return spec_model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise JobError(f"The spec {path} could not be read: {error.strerror}.") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'spec'}: {e['msg']}" for e in error.errors())
        raise JobError(f"The spec is not valid: {problems}.") from error
