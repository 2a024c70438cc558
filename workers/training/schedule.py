"""How far a run is, and the learning rate that goes with it. A run is as long as its steps or as its minutes."""

import math
from typing import Literal

DECAY_SHARE = 0.2  # of a WSD run (warm-up, stable, decay): MiniCPM §4.2 finds 10-20 % enough


def learning_rate(peak: float, progress: float, warmup: float, schedule: Literal["linear", "cosine", "wsd", "constant"]) -> float:
    """The rate at `progress` in [0, 1], `warmup` being the share of the run in which it rises to `peak`."""
    if progress < warmup:
        return peak * max(progress, 1e-3) / warmup
    left = (1 - min(progress, 1.0)) / (1 - warmup)  # 1 → 0
    if schedule == "linear":
        return peak * max(left, 0.01)
    if schedule == "cosine":
        return peak * max(0.5 - 0.5 * math.cos(math.pi * left), 0.01)
    if schedule == "wsd":
        return peak * max(min(1.0, left / DECAY_SHARE), 0.01)
    return peak


def progress_of(*, step: int, elapsed_seconds: float, steps: int | None, minutes: float | None) -> float:
    """0 at the start, 1 at the end. By the clock where the run has minutes."""
    if steps is not None:
        return step / steps
    assert minutes is not None
    return min(1.0, elapsed_seconds / (minutes * 60))
