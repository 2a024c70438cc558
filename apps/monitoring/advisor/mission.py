"""The claim that this portal was asked to check: "1024 GPUs, 48 TB → 12 TB by ZeRO". Which assumptions give it, and what the formula says."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from workers.planning import PAPER, Shape

GPUS = 1024
BEFORE_BYTES, AFTER_BYTES = 48e12, 12e12


@dataclass(frozen=True)
class Line:
    stage: int
    formula: str
    bytes_per_gpu: float
    bytes_in_all: float


@dataclass(frozen=True)
class MissionCase:
    gpus: int
    claim: str
    explanation: str
    implied_parameters: float  # that make the claim's "before" with one full copy on every GPU
    claimed: list[Line]  # each stage, for the implied parameters
    yours: list[Line]  # each stage, for the model that was asked about


def mission_case(shape: Shape) -> MissionCase:
    implied = BEFORE_BYTES / (PAPER.total * GPUS)
    lines = _lines(implied)
    ratio = BEFORE_BYTES / AFTER_BYTES
    explanation = _(
        "Without sharding every GPU holds %(each)s Ψ bytes (weights 2 Ψ, gradients 2 Ψ, optimizer 12 Ψ). %(gpus)s full copies take 48 TB when "
        "%(each)s Ψ · %(gpus)s = 48 TB, so Ψ = %(psi)s B parameters, %(before)s GB a GPU. "
        "12 TB is a quarter of it, and %(ratio)s× is what stage 1 gives with many GPUs: (2 + 2 + 12/N) Ψ → 4 Ψ, here "
        "%(one)s TB. The formula goes further: stage 2 leaves %(two)s TB, and stage 3 "
        "one copy in all, %(three)s GB. Activations are not in these figures, and ZeRO does not shard them."
    ) % {
        "each": PAPER.total, "gpus": GPUS, "psi": f"{implied / 1e9:.2f}", "before": f"{BEFORE_BYTES / GPUS / 1e9:.1f}", "ratio": f"{ratio:.0f}",
        "one": f"{lines[1].bytes_in_all / 1e12:.2f}", "two": f"{lines[2].bytes_in_all / 1e12:.2f}", "three": f"{lines[3].bytes_in_all / 1e9:.1f}",
    }  # fmt: skip
    return MissionCase(GPUS, _("48 TB → 12 TB on 1024 GPUs"), explanation, implied, lines, _lines(shape.total_parameters))


def _lines(psi: float) -> list[Line]:
    each = {
        0: ("(2 + 2 + 12) Ψ", PAPER.total),
        1: ("(2 + 2 + 12 / N) Ψ", PAPER.weights + PAPER.gradients + PAPER.optimizer / GPUS),
        2: ("(2 + (2 + 12) / N) Ψ", PAPER.weights + (PAPER.gradients + PAPER.optimizer) / GPUS),
        3: ("(2 + 2 + 12) Ψ / N", PAPER.total / GPUS),
    }
    return [Line(stage, formula, a * psi, a * psi * GPUS) for stage, (formula, a) in each.items()]
