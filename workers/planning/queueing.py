"""How many servers a stream of requests needs, so that the slowest hundredth waits no longer than allowed: Erlang's formulas."""

import math

EXACT_UP_TO = 2_000  # servers; beyond, the square-root rule (Halfin and Whitt 1981) is as good and quicker


def waits(servers: int, load: float) -> float:
    """The probability that a request waits at all, in M/M/c: Erlang C. `load`: arrivals · service time, less than `servers`."""
    if load >= servers:
        return 1.0
    if servers > EXACT_UP_TO:
        spare = (servers - load) / math.sqrt(load)
        density = math.exp(-spare * spare / 2) / math.sqrt(2 * math.pi)
        below = 0.5 * math.erfc(-spare / math.sqrt(2))
        return 1 / (1 + spare * below / density) if density > 0 else 0.0
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


def waiting_seconds(servers: int, load: float, service_seconds: float, share: float = 0.99) -> float:
    """What `share` of the requests wait at most. P(wait > t) = C · exp(−(c − a) t / S)."""
    if load >= servers:
        return math.inf
    chance = waits(servers, load)
    return max(0.0, math.log(chance / (1 - share)) * service_seconds / (servers - load)) if chance > 0 else 0.0


def fewest_groups(load: float, group: int, service_seconds: float, allowed_seconds: float, share: float = 0.99) -> int:
    """The fewest groups of `group` servers with which `share` of the requests wait `allowed_seconds` at most."""
    low = max(1, math.ceil(load / group))
    high = low + 1
    while waiting_seconds(high * group, load, service_seconds, share) > allowed_seconds:
        high *= 2
    while low < high:
        middle = (low + high) // 2
        if waiting_seconds(middle * group, load, service_seconds, share) <= allowed_seconds:
            high = middle
        else:
            low = middle + 1
    return low
