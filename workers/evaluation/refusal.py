"""How often false claims are refused, and how often true ones are."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusals:
    refusal_rate: float | None  # of the false claims; None when there were none
    false_alarm_rate: float | None  # of the true claims; None when there were none
    claims: int


def count_refusals(judged: Iterable[tuple[bool, bool]]) -> Refusals:
    """`judged`: for each claim, whether it is true and whether the model refused it."""
    rows = list(judged)
    false_claims = [refused for label, refused in rows if not label]
    true_claims = [refused for label, refused in rows if label]
    return Refusals(_share(false_claims), _share(true_claims), len(rows))


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
