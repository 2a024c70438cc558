"""Latency histograms with logarithmic bins: any percentile within 1 %, whatever the range, in a few bytes."""

import math
from collections.abc import Mapping

_GROWTH = math.log(1.02)
_SMALLEST_MS = 0.05


def bin_of(latency_ms: float) -> int:
    return max(0, math.ceil(math.log(max(latency_ms, _SMALLEST_MS) / _SMALLEST_MS) / _GROWTH))


def middle_of(number: int) -> float:
    """The geometric middle of a bin, in milliseconds."""
    return _SMALLEST_MS * math.exp((number - 0.5) * _GROWTH)


def percentile(histogram: Mapping[int, int], share: float) -> float | None:
    """The latency in milliseconds that `share` (0 to 1) of the requests stayed within; None for an empty histogram."""
    total = sum(histogram.values())
    if not total:
        return None
    wanted, seen = share * total, 0
    for number in sorted(histogram):
        seen += histogram[number]
        if seen >= wanted:
            return middle_of(number)
    return middle_of(max(histogram))
