"""Plain statistics of two arms. Numbers in, numbers out."""

import math
from dataclasses import dataclass
from statistics import NormalDist

_NORMAL = NormalDist()
Z_95 = _NORMAL.inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    value: float | None
    low: float | None
    high: float | None
    count: int


def mean_interval(count: int, total: float, squares: float) -> Interval:
    """95 % interval of a mean from count, sum and sum of squares (normal approximation; wide where there is little)."""
    if count == 0:
        return Interval(None, None, None, 0)
    mean = total / count
    if count == 1:
        return Interval(mean, None, None, 1)
    variance = max(0.0, (squares - count * mean * mean) / (count - 1))
    margin = Z_95 * math.sqrt(variance / count)
    return Interval(mean, mean - margin, mean + margin, count)


def share_interval(successes: int, count: int) -> Interval:
    """Wilson's 95 % score interval of a share (Wilson 1927)."""
    if count == 0:
        return Interval(None, None, None, 0)
    p, z2 = successes / count, Z_95**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    margin = Z_95 / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    return Interval(p, max(0.0, centre - margin), min(1.0, centre + margin), count)


def difference_p_value(a: Interval, b: Interval) -> float | None:
    """Two-sided p of `b - a = 0`, from the two means' own intervals (Welch, normal approximation)."""
    if None in (a.low, b.low, a.high, b.high):
        return None
    error = math.hypot((a.high - a.low) / (2 * Z_95), (b.high - b.low) / (2 * Z_95))
    if error == 0:
        return 1.0 if a.value == b.value else 0.0
    return 2 * (1 - _NORMAL.cdf(abs(b.value - a.value) / error))


def sample_ratio_p_value(treatment: int, control: int, split: float) -> float | None:
    """Two-sided p that the arms' sizes came from the planned split (normal approximation to the binomial)."""
    count = treatment + control
    if count == 0:
        return None
    spread = math.sqrt(count * split * (1 - split))
    return 2 * (1 - _NORMAL.cdf(abs(treatment - count * split) / spread))


def deviation_of(interval: Interval) -> float | None:
    """The observations' standard deviation, from their mean's interval."""
    if interval.low is None or interval.high is None:
        return None
    return (interval.high - interval.low) / (2 * Z_95) * math.sqrt(interval.count)


def observations_needed(deviation: float, difference: float) -> int:
    """How many observations each arm needs to find a difference of means with 80 % power at 5 %: 2 (z_0.975 + z_0.8)² s² / d²."""
    return math.ceil(2 * (Z_95 + _NORMAL.inv_cdf(0.8)) ** 2 * deviation**2 / difference**2)
