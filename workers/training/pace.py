"""How long a run has still to go, by the pace of its last half: the first steps compile, fill caches, and say little of the rest."""

from collections import deque


class Pace:
    """Hears the share done and the seconds of training, now and then."""

    def __init__(self) -> None:
        self._heard: deque[tuple[float, float]] = deque()

    def seconds_left(self, share: float, elapsed: float) -> float:
        """`share` in (0, 1], ascending but for a run that goes back to a checkpoint."""
        while self._heard and self._heard[-1][0] >= share:
            self._heard.pop()
        self._heard.append((share, elapsed))
        while len(self._heard) > 2 and self._heard[1][0] <= share / 2:
            self._heard.popleft()
        before, then = self._heard[0]
        if share - before < share / 4:  # too short a stretch to go by
            return elapsed * (1 - share) / share
        return (elapsed - then) * (1 - share) / (share - before)
