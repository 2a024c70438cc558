"""What the charts call a percentile is one, within a percent, whatever the latencies look like."""

from collections import Counter

import numpy as np
import pytest

from apps.monitoring.histogram import bin_of, percentile

DRAWN = np.random.default_rng(7)
LATENCIES_MS = {
    "lognormal": DRAWN.lognormal(3, 1, 5_000),
    "exponential": DRAWN.exponential(100, 700),
    "heavy-tailed": 5 * (1 + DRAWN.pareto(2, 2_000)),
    "cached, and a tenth computed": np.where(DRAWN.random(2_000) < 0.9, DRAWN.gamma(9, 0.3, 2_000), DRAWN.gamma(40, 6, 2_000)),
    "a handful": DRAWN.exponential(100, 7),
    "one": np.array([236.4]),
}


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("latencies_ms", LATENCIES_MS.values(), ids=LATENCIES_MS)
def test_a_percentile_is_within_one_percent_of_the_latency_that_so_many_stayed_within(latencies_ms, share):
    histogram = Counter(map(bin_of, latencies_ms))

    exact = np.percentile(latencies_ms, 100 * share, method="inverted_cdf")
    assert percentile(histogram, share) == pytest.approx(exact, rel=0.01)


def test_it_errs_to_neither_side():
    errors = []
    for _ in range(300):
        latencies_ms = DRAWN.exponential(100, 300)
        exact = np.percentile(latencies_ms, 99, method="inverted_cdf")
        errors.append(percentile(Counter(map(bin_of, latencies_ms)), 0.99) / exact - 1)

    assert abs(np.mean(errors)) < 0.002


def test_nothing_has_no_percentile():
    assert percentile({}, 0.99) is None
