"""How long a training takes: by counting operations where nothing was measured, and how many devices meet a deadline."""

import math

from workers.planning.shape import Shape

TRAINING_EFFICIENCY = 0.4  # of the peak that well-tuned programs reach; an assumption, to be replaced by a measurement of yours


def training_flops_per_token(shape: Shape, sequence: int) -> float:
    """Forward and backward: 6 an active parameter, and attention's 12 · layers · H · h · s / 2, causal (PaLM, appendix B)."""
    return 6.0 * shape.active_parameters + 6.0 * shape.n_layers * shape.n_heads * shape.head_dim * sequence


def tokens_per_second(shape: Shape, sequence: int, flops: float, efficiency: float = TRAINING_EFFICIENCY) -> float:
    """Of one device with a peak of `flops` operations a second."""
    return flops * efficiency / training_flops_per_token(shape, sequence)


def devices_for(tokens: float, days: float, rate: float) -> int:
    """The fewest devices of `rate` tokens a second that read `tokens` in `days`."""
    return max(1, math.ceil(tokens / (days * 86_400 * rate)))
