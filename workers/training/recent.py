"""What the last steps were like: sums that forget."""

from workers.training.state import Progress

KEPT_A_STEP = 0.98  # so a figure speaks of the last fifty steps


def remember(progress: Progress, loss: float, load: list[list[float]]) -> None:
    """`load`: layers × experts, the tokens that each expert was given in this step."""
    progress.recent_loss = progress.recent_loss * KEPT_A_STEP + loss
    progress.recent_weight = progress.recent_weight * KEPT_A_STEP + 1
    if not progress.recent_load:
        progress.recent_load = [[0.0] * len(row) for row in load]
    progress.recent_load = [
        [old * KEPT_A_STEP + new for old, new in zip(before, now, strict=True)] for before, now in zip(progress.recent_load, load, strict=True)
    ]


def mean_loss(progress: Progress) -> float | None:
    return progress.recent_loss / progress.recent_weight if progress.recent_weight else None


def load_shares(progress: Progress) -> list[list[float]]:
    """Layers × experts; each layer sums to 1."""
    return [[tokens / (sum(row) or 1.0) for tokens in row] for row in progress.recent_load]


def load_max_over_mean(progress: Progress) -> float | None:
    """Of the layer that is worst. 1 is an even load; None for a dense model."""
    return max((layer["max_over_mean"] for layer in balance(progress)), default=None)


def load_min_over_mean(progress: Progress) -> float | None:
    """Of the layer that is worst. 1 is an even load, 0 an expert that nobody is sent to; None for a dense model."""
    return min((layer["min_over_mean"] for layer in balance(progress)), default=None)


def balance(progress: Progress) -> list[dict[str, float]]:
    """For each layer, the fullest and the emptiest expert's load over the mean."""
    return [{"max_over_mean": max(row) * len(row), "min_over_mean": min(row) * len(row)} for row in load_shares(progress)]
