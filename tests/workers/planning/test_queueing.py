import heapq

import numpy as np
import pytest

from workers.planning import fewest_groups, waiting_seconds
from workers.planning.queueing import EXACT_UP_TO, waits


def simulated_p99(servers: int, rate: float, service: float, seed: int = 0) -> float:
    """Waiting of an M/M/c queue, request by request."""
    generator = np.random.default_rng(seed)
    arrivals = generator.exponential(1 / rate, 200_000).cumsum()
    services = generator.exponential(service, len(arrivals))
    free = [0.0] * servers
    waited = []
    for arrival, needs in zip(arrivals, services, strict=True):
        start = max(arrival, heapq.heappop(free))
        heapq.heappush(free, start + needs)
        waited.append(start - arrival)
    return float(np.quantile(waited[5000:], 0.99))


@pytest.mark.parametrize(("servers", "load"), [(2, 1.4), (8, 6.8)])
def test_the_slowest_hundredth_waits_as_long_as_in_a_simulation(servers, load):
    service = 0.5

    assert waiting_seconds(servers, load, service) == pytest.approx(simulated_p99(servers, load / service, service), rel=0.15)


def test_the_fewest_groups_keep_the_limit_and_one_fewer_does_not():
    count = fewest_groups(50.0, 8, 0.2, 0.05)

    assert waiting_seconds(8 * count, 50.0, 0.2) <= 0.05 < waiting_seconds(8 * (count - 1), 50.0, 0.2)


def test_the_rule_for_many_servers_goes_on_where_the_exact_formula_ends():
    servers, load = EXACT_UP_TO, EXACT_UP_TO - 60.0

    assert waits(servers + 1, load + 1) == pytest.approx(waits(servers, load), rel=0.05)
