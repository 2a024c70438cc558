"""How far ahead to guess, by what was measured: the depth that gave the most tokens a second, and 0 where guessing does not pay."""

from collections import defaultdict, deque

DEPTHS = (0, 1, 2, 3, 5, 8)
TURN = 16  # steps that a depth is kept
KEPT = 48  # steps of each depth that count
TRIMMED = 1 / 16  # of them, the slowest do not: another process had the core
FEWEST_TURNS, MOST_TURNS = 4, 64  # between two looks at another depth; twice as many after each look that changed nothing


class Depth:
    """Learns for each number of sequences that decode together, in powers of two: the more there are, the less a guess is worth."""

    def __init__(self) -> None:
        self._known: defaultdict[int, _Choice] = defaultdict(_Choice)

    def now(self, sequences: int) -> int:
        return self._known[sequences.bit_length()].depth

    def note(self, sequences: int, seconds: float, tokens: int) -> None:
        """A step of the depth that `now` gave took `seconds` and gave `tokens`."""
        self._known[sequences.bit_length()].note(seconds, tokens)


class _Choice:
    """Tries each depth, then keeps the best, and looks at the two beside it now and then."""

    def __init__(self) -> None:
        self._steps: list[deque[tuple[float, int]]] = [deque(maxlen=KEPT) for _ in DEPTHS]
        self._at = self._best = 0
        self._left = TURN
        self._patience = FEWEST_TURNS
        self._turns = 0  # since the last look
        self._upwards = True

    @property
    def depth(self) -> int:
        return DEPTHS[self._at]

    def note(self, seconds: float, tokens: int) -> None:
        self._steps[self._at].append((seconds, tokens))
        self._left -= 1
        if not self._left:
            self._left = TURN
            self._at = self._next()

    def _next(self) -> int:
        untried = next((at for at, steps in enumerate(self._steps) if not steps), None)
        if untried is not None and self._rate(untried - 1) > 0.7 * max(self._rate(at) for at in range(untried)):
            return untried
        before, self._best = self._best, max(range(len(DEPTHS)), key=self._rate)
        if before != self._best:
            self._patience = FEWEST_TURNS
        self._turns += 1
        if self._turns < self._patience:
            return self._best
        self._turns, self._patience = 0, min(2 * self._patience, MOST_TURNS)
        self._upwards = not self._upwards
        return min(max(self._best + (1 if self._upwards else -1), 0), len(DEPTHS) - 1)

    def _rate(self, at: int) -> float:
        """Tokens a second; 0 of what was never tried."""
        steps = sorted(self._steps[at])
        kept = steps[: len(steps) - int(len(steps) * TRIMMED)]
        return sum(tokens for _, tokens in kept) / max(sum(seconds for seconds, _ in kept), 1e-9)
