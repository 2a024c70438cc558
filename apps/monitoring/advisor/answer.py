"""What the hardware advisor says, as data: pages and the API show the same."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from apps.monitoring.advisor.devices import DEVICES, PRICE_NOTE, Device, this_machine
from apps.monitoring.advisor.memory import Explained
from apps.monitoring.advisor.mission import MissionCase
from workers.planning import Recipe, Shape

MAX_GPUS = 100_000


@dataclass(frozen=True)
class Stage:
    """One ZeRO stage: memory of one rank, and of all together."""

    stage: int
    bytes_per_rank: float
    bytes_in_all: float
    formula: str


@dataclass(frozen=True)
class DeviceAdvice:
    device: Device
    possible: bool  # at all, with any number of it
    fits: bool  # with the number that was asked for
    count: int | None  # how many it takes
    bytes_per_rank: float
    tokens_per_second: float | None  # of all together
    hours: float | None  # of the training
    cost_per_hour: float | None
    cost: float | None  # of the training; of a month's serving
    batch: int | None  # sequences that share a step while serving
    p99_ms: float | None  # estimated, of one answer, while serving
    why: str
    formula: str = ""  # of the count, with its numbers
    price_note: str = PRICE_NOTE


@dataclass(frozen=True)
class HardwareAdvice:
    purpose: str
    shape: Shape
    precision: str
    gpus: int
    zero_stage: int
    batch: int
    sequence: int
    qps: float | None
    p99_limit_ms: float | None
    tokens: float | None
    days: float | None
    recipe: Recipe | None
    moment: str | None
    parts: list[Explained]
    bytes_per_rank: float
    stages: list[Stage]
    devices: list[DeviceAdvice]
    recommended: str | None
    verdict: str
    formulas: dict[str, str]
    assumptions: list[str]
    mission: MissionCase


def all_devices() -> list[Device]:
    return [*DEVICES, this_machine()]


def fewest(least: int, rentable: bool, fits) -> int | None:
    """The smallest number from `least` on, doubling, that fits; of this machine there is one."""
    n = least
    while n <= (MAX_GPUS if rentable else 1):
        if fits(n):
            return n
        n *= 2
    return None


def impossible(device: Device, rank_bytes: float, why: str) -> DeviceAdvice:
    return DeviceAdvice(device, False, False, None, rank_bytes, None, None, None, None, None, None, why)


def no_precision(device: Device, precision: str) -> str:
    note = _(device.note) if device.note else ""
    return (_("It has no %(precision)s.") % {"precision": precision.upper()} + f" {note}").strip()


def cheapest(devices: list[DeviceAdvice]) -> DeviceAdvice | None:
    """Of those that fit as asked, else of those that do in larger numbers. What has no price is taken only where nothing else is possible."""
    possible = [d for d in devices if d.possible]
    return min(possible, key=lambda d: (not d.fits, d.cost is None, d.cost or 0.0), default=None)
