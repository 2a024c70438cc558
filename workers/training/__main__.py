"""`python -m workers.training SPEC.json`, one process a rank: docs/architecture.md has the protocol."""

import os
import sys
from typing import Any

from workers.protocol import EXIT_ERROR, emit, run
from workers.training.again import is_started_in_vain
from workers.training.spec import TrainSpec


def _train(spec: TrainSpec) -> dict[str, Any] | None:
    if is_started_in_vain(spec.work_folder):
        sys.exit(EXIT_ERROR)
    if os.environ.get("RANK", "0") == "0":
        emit("progress", progress=0.0, message="Loading PyTorch", eta_seconds=None)  # takes seconds, in which people want to see life
    from workers.training.train import train

    return train(spec)


if __name__ == "__main__":
    run(_train, TrainSpec)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from workers.training.ranks import end_at_once

        end_at_once()
