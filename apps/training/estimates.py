"""What a run will take, before it is started: from earlier runs on this machine, and by counting bytes."""

import os
import statistics
from dataclasses import dataclass
from typing import Any

from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.jobs.models import Job
from apps.monitoring.advisor.memory import PORTAL, Part, recipe_of, total, training_parts
from apps.monitoring.advisor.shapes import shape_of_preset
from apps.training.models import TrainingJob
from apps.training.selectors import preset as find
from workers.training.spec import TrainSpec

RUNS_LOOKED_AT = 60
RUNS_USED = 5
MIN_STEPS = 20  # a run shorter than this measured its start
MICRO_BATCH = TrainSpec.model_fields["micro_batch"].default
MAX_LENGTH = TrainSpec.model_fields["max_length"].default


@dataclass(frozen=True)
class Estimate:
    """`steps`, `seconds`, `tokens_per_second` are None where no earlier run tells. `basis` says what they rest on."""

    tokens_per_second: float | None
    seconds: float | None
    steps: int | None
    passes: float | None  # over the dataset's used rows
    basis: str
    parameters: int
    active_parameters: int
    memory_bytes: float  # of one rank
    memory_parts: list[Part]
    machine_bytes: int
    ranks: int

    @property
    def fits(self) -> bool:
        return self.memory_bytes * self.ranks <= 0.9 * self.machine_bytes


def estimate(*, preset: dict[str, Any], minutes: float | None, steps: int | None, accum_steps: int, zero_stage: int, world_size: int, precision: str,
             rows: int | None) -> Estimate:  # fmt: skip
    pace = _pace(preset, world_size)
    step_seconds = pace.seconds_per_micro_batch * accum_steps if pace else None
    count, seconds = steps, (minutes * 60 if minutes else None)
    if step_seconds:
        count = steps or max(1, int((minutes or 0) * 60 / step_seconds))
        seconds = seconds or (steps or 0) * step_seconds
    parts = training_parts(
        shape_of_preset(preset["name"]), recipe=recipe_of(PORTAL.name, precision), stage=zero_stage, gpus=world_size, batch=MICRO_BATCH,
        sequence=MAX_LENGTH, precision=precision, gpu=False,
    )  # fmt: skip
    return Estimate(
        tokens_per_second=pace.tokens_per_second if pace else None,
        seconds=seconds,
        steps=count,
        passes=count * MICRO_BATCH * accum_steps * world_size / rows if count and rows else None,
        basis=pace.basis if pace else _("No run on this machine has measured its speed yet; the first one will tell."),
        parameters=preset["total_parameters"],
        active_parameters=preset["active_parameters"],
        memory_bytes=total(parts),
        memory_parts=parts,
        machine_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        ranks=world_size,
    )


@dataclass(frozen=True)
class _Pace:
    tokens_per_second: float
    seconds_per_micro_batch: float
    basis: str


def _pace(preset: dict[str, Any], world_size: int) -> _Pace | None:
    """Medians of the newest runs of the same preset, else of those of the nearest one, scaled by the active parameters."""
    measured = [
        job
        for job in TrainingJob.objects.filter(Q(status=Job.Status.SUCCEEDED) | Q(status=Job.Status.RUNNING)).order_by("-pk")[:RUNS_LOOKED_AT]
        if job.metrics.get("tokens_per_second") and job.metrics.get("elapsed") and job.metrics.get("step", 0) >= MIN_STEPS
    ]
    if not measured:
        return None
    same = [job for job in measured if job.preset == preset["name"]]
    alike = [job for job in same if job.world_size == world_size] or same or measured
    nearest = alike[:RUNS_USED] if same else [alike[0]]
    known = find(nearest[0].preset)
    scale = 1.0 if same or known is None else preset["active_parameters"] / known["active_parameters"]
    speed = statistics.median(job.metrics["tokens_per_second"] for job in nearest) / scale
    seconds = statistics.median(job.metrics["elapsed"] / job.metrics["step"] / job.accum_steps for job in nearest) * scale
    if same:
        basis = ngettext(
            "Measured: one earlier run of %(preset)s on this machine.",
            "Measured: the median of %(n)s earlier runs of %(preset)s on this machine.",
            len(nearest),
        ) % {"n": len(nearest), "preset": preset["name"]}
    else:
        basis = _("Scaled: %(preset)s has not run here; taken from %(other)s by the ratio of active parameters (%(ratio)s).") % {
            "preset": preset["name"], "other": nearest[0].preset, "ratio": f"{scale:,.1f} ×",
        }  # fmt: skip
    return _Pace(speed, seconds, basis)
