"""Starting all ranks again with smaller micro-batches, when one of them ran out of memory while the others wait for it.

The rank that failed leaves a note and ends; torchrun then ends the others and starts all anew (`--max-restarts`), and they go on from
the last checkpoint. torchrun does so after any failure: a rank that was started again and finds no such note ends at once.
Imports no torch, so that this takes no time.
"""

import json
import os
import sys
from pathlib import Path

FILE = "smaller_batches.json"
EXIT_START_AGAIN = 75  # EX_TEMPFAIL


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def start_again(work_folder: Path, micro_batches: int) -> None:
    """Ends this process. `micro_batches`: of a step, over all ranks."""
    temporary = work_folder / f".{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps({"micro_batches": micro_batches, "restart": _restarts() + 1}))
    temporary.rename(work_folder / FILE)
    sys.stdout.flush()
    os._exit(EXIT_START_AGAIN)  # at once: leaving the process group in order would wait for the others


def micro_batches_asked_for(work_folder: Path) -> int:
    """What a rank that failed has asked for; 0 where none has."""
    path = work_folder / FILE
    return int(json.loads(path.read_text())["micro_batches"]) if path.exists() else 0


def is_started_in_vain(work_folder: Path) -> bool:
    """Whether torchrun started this rank again after a failure that would only repeat itself."""
    path = work_folder / FILE
    return _restarts() > 0 and (not path.exists() or json.loads(path.read_text())["restart"] != _restarts())
