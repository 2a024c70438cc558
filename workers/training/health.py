"""When a run is ill: the loss leaps, numbers are not finite, memory is not enough."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from workers.protocol import ran_out_of_memory

WINDOW = 64  # steps that say what is usual
FEWEST = 32  # before so many, nothing is called unusual
PATIENCE = 3  # a single batch of hard examples is no divergence; so many steps in a row are
SMALLEST_LEAP = 2.0  # nats; late in a small dataset most batches are learnt and some are not: their losses differ by many deviations, and harm nobody
_TO_SIGMA = 1.4826  # median absolute deviation → standard deviation of a normal distribution


class Diverged(Exception):
    """The loss leapt, or loss or gradients are not finite and no smaller loss scale would help."""


class OutOfMemory(Exception):
    """A step did not fit. `weights_touched`: it failed while the optimizer was changing them."""

    def __init__(self, message: str, weights_touched: bool):
        super().__init__(message)
        self.weights_touched = weights_touched


def is_leap(loss: float, recent: Sequence[float], deviations: float) -> bool:
    """Whether `loss` lies above the median of `recent` by `deviations` robust standard deviations (0: never asked)."""
    if not deviations or len(recent) < FEWEST:
        return False
    median = statistics.median(recent)
    spread = _TO_SIGMA * statistics.median(abs(value - median) for value in recent)
    return loss > median + max(deviations * spread, SMALLEST_LEAP)


@contextmanager
def memory_watched(touches_weights: bool) -> Iterator[None]:
    """Raises OutOfMemory for any form of it, without the traceback: that would hold on to the tensors of the step."""
    said = ""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        said = str(error).strip().splitlines()[0] if str(error) else "the system has none left"
    if said:
        raise OutOfMemory(said, touches_weights)
