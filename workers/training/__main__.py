"""`python -m workers.training SPEC.json`, one process a rank: docs/architecture.md has the protocol."""

import os
from typing import Any

from workers.protocol import emit, run
from workers.training.spec import TrainSpec


def _train(spec: TrainSpec) -> dict[str, Any] | None:
    if os.environ.get("RANK", "0") == "0":
        emit("progress", progress=0.0, message="Loading PyTorch", eta_seconds=None)  # takes seconds, in which people want to see life
    from workers.training.train import train

    return train(spec)


if __name__ == "__main__":
    run(_train, TrainSpec)
