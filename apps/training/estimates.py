"""What a run will take, before it is started: from earlier runs on this machine, and by counting bytes and operations."""

import statistics
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.accounts.problems import Problem
from apps.datasets.models import Dataset
from apps.jobs.models import Job
from apps.monitoring.advisor.devices import this_machine
from apps.monitoring.advisor.memory import MOMENTS, Explained, explained
from apps.monitoring.advisor.shapes import shape_of_preset, shape_of_version
from apps.portal.templatetags.portal import percent
from apps.registry.models import ModelVersion
from apps.training.models import TrainingJob
from apps.training.selectors import preset as find
from apps.training.selectors import presets
from workers.planning import USABLE_SHARE, Configuration, Kind, Planned, Rows, Shape, machine_bytes, nearest, planned, rows_of, tokens_per_second
from workers.training.spec import TrainSpec

RUNS_LOOKED_AT = 60
RUNS_USED = 5
MIN_STEPS = 20  # a run shorter than this measured its start
MICRO_BATCH = TrainSpec.model_fields["micro_batch"].default
MAX_LENGTH = TrainSpec.model_fields["max_length"].default
CPU_EFFICIENCY = 0.15  # of the peak, by small models on a CPU: what benchmarks/training.py finds on two cores
CHECKPOINTING = "activation_checkpointing"
EXPERTS = "expert_parallel_size"


@dataclass(frozen=True)
class Estimate:
    """`steps`, `seconds`, `tokens_per_second` are None where nothing tells. `basis` says what they rest on."""

    tokens_per_second: float | None
    seconds: float | None
    steps: int | None
    passes: float | None  # over the dataset's used rows
    basis: str
    parameters: int
    active_parameters: int
    memory_bytes: float  # of one rank
    memory_parts: list[Explained]
    moment: str  # at which it needs most
    machine_bytes: int
    room_bytes: float  # of these, for the ranks together
    ranks: int
    nearest: Planned | None  # that fits, where what was asked for does not

    @property
    def fits(self) -> bool:
        return self.memory_bytes * self.ranks <= self.room_bytes


@dataclass(frozen=True)
class Plan:
    asked: Planned
    room: float
    nearest: Planned | None

    @property
    def fits(self) -> bool:
        return self.asked.bytes_in_all <= self.room


def plan(*, configuration: Configuration, dataset: Dataset | None, parent: ModelVersion | None = None) -> Plan:
    """The memory of a run on this machine, and where that is too little, the nearest configuration that fits."""
    kinds = kinds_of(dataset)
    shape = shape_of(configuration.preset, parent)
    configuration = replace(configuration, preset=shape.name)
    max_length = min(MAX_LENGTH, shape.max_seq_len)

    def rows(micro_batch: int) -> Rows:
        return rows_of(kinds, micro_batch, max_length)

    asked, room = planned(configuration, shape, rows(configuration.sequences)), USABLE_SHARE * machine_bytes()
    if asked.bytes_in_all <= room:
        return Plan(asked, room, None)
    others: list[Shape] = [shape] if parent else [shape_of_preset(each["name"]) for each in presets()]
    return Plan(asked, room, nearest(configuration, others, rows, room, may_checkpoint=True))


def shape_of(preset_name: str, parent: ModelVersion | None) -> Shape:
    """The parent's, as far as its configuration can be read, else the preset's."""
    if parent is not None:
        with suppress(Problem):
            return shape_of_version(parent)
    return shape_of_preset(preset_name)


def kinds_of(dataset: Dataset | None) -> list[Kind]:
    """What the dataset's report says of its training records."""
    run = dataset.current_run if dataset else None
    parts = (run.report.get("mixture") or []) if run else []
    return [Kind(part["kind"], part["rows"], part["tokens"], part.get("pictures", 0)) for part in parts if part.get("split") == "train"]


def pairs_of(dataset: Dataset | None, *, objective: str, stages: bool = False) -> int:
    """Units that preference training learns from; 0 where the run has no such part."""
    learns = objective != TrainingJob.Objective.SFT or stages
    run = dataset.current_run if dataset and learns else None
    found = (run.report.get("preferences") or {}) if run else {}
    units = found.get("good", 0) + found.get("bad", 0) if objective == TrainingJob.Objective.KTO else found.get("pairs", 0)
    return max(units, int(objective != TrainingJob.Objective.SFT))


def estimate(*, configuration: Configuration, minutes: float | None, steps: int | None, dataset: Dataset | None, parent: ModelVersion | None = None,
             ) -> Estimate | None:  # fmt: skip
    """None where there is no such preset."""
    chosen = find(configuration.preset)
    if chosen is None:
        return None
    made = plan(configuration=configuration, dataset=dataset, parent=parent)
    pace = _pace(chosen, configuration) or _counted(shape_of(configuration.preset, parent), configuration, dataset)
    count, seconds = steps, (minutes * 60 if minutes else None)
    if pace:
        step_seconds = pace.seconds_per_micro_batch * configuration.accum_steps
        count = steps or max(1, int((minutes or 0) * 60 / step_seconds))
        seconds = seconds or (steps or 0) * step_seconds
    rows = dataset.used_rows if dataset else None
    return Estimate(
        tokens_per_second=pace.tokens_per_second if pace else None,
        seconds=seconds,
        steps=count,
        passes=count * configuration.step_examples / rows if count and rows else None,
        basis=pace.basis if pace else _("No run on this machine has measured its speed yet; the first one will tell."),
        parameters=chosen["total_parameters"],
        active_parameters=chosen["active_parameters"],
        memory_bytes=made.asked.rank_bytes,
        memory_parts=explained(made.asked.parts),
        moment=str(MOMENTS[made.asked.moment]),
        machine_bytes=machine_bytes(),
        room_bytes=made.room,
        ranks=configuration.ranks,
        nearest=made.nearest,
    )


@dataclass(frozen=True)
class _Pace:
    tokens_per_second: float
    seconds_per_micro_batch: float
    basis: str


def _pace(preset: dict[str, Any], asked: Configuration) -> _Pace | None:
    """Medians of the newest runs of the same preset, else of those of the nearest one, scaled by the active parameters."""
    measured = [
        job
        for job in TrainingJob.objects.filter(Q(status=Job.Status.SUCCEEDED) | Q(status=Job.Status.RUNNING)).order_by("-pk")[:RUNS_LOOKED_AT]
        if job.metrics.get("tokens_per_second") and job.metrics.get("elapsed") and job.metrics.get("step", 0) >= MIN_STEPS
    ]
    if not measured:
        return None
    same = [job for job in measured if job.preset == preset["name"]]
    alike = [job for job in same if job.world_size == asked.ranks] or same or measured
    nearest_runs = alike[:RUNS_USED] if same else [alike[0]]
    known = find(nearest_runs[0].preset)
    scale = 1.0 if same or known is None else preset["active_parameters"] / known["active_parameters"]
    speed = statistics.median(job.metrics["tokens_per_second"] for job in nearest_runs) / scale
    an_example = statistics.median(
        job.metrics["elapsed"] / job.metrics["step"] / job.accum_steps / micro_batch_of(job.options) for job in nearest_runs
    )
    if same:
        basis = ngettext(
            "Measured: one earlier run of %(preset)s on this machine.",
            "Measured: the median of %(n)s earlier runs of %(preset)s on this machine.",
            len(nearest_runs),
        ) % {"n": len(nearest_runs), "preset": preset["name"]}
    else:
        basis = _("Scaled: %(preset)s has not run here; taken from %(other)s by the ratio of active parameters (%(ratio)s).") % {
            "preset": preset["name"], "other": nearest_runs[0].preset, "ratio": f"{scale:,.1f} ×",
        }  # fmt: skip
    return _Pace(speed, an_example * scale * asked.micro_batch, basis)


def _counted(shape: Shape, asked: Configuration, dataset: Dataset | None) -> _Pace | None:
    """From the machine's peak, where nothing was measured yet."""
    machine = _machine()
    rows = rows_of(kinds_of(dataset), asked.micro_batch, min(MAX_LENGTH, shape.max_seq_len))
    peak = machine.flops.get(asked.precision) or machine.flops["fp32"]
    # Ranks on one machine share its cores.
    speed = tokens_per_second(shape, rows.length, peak, CPU_EFFICIENCY)
    basis = _("Counted: no run on this machine has measured its speed yet; %(share)s of its peak of %(peak)s GFLOP/s is assumed.") % {
        "share": percent(CPU_EFFICIENCY), "peak": f"{peak / 1e9:,.0f}",
    }  # fmt: skip
    return _Pace(speed, rows.tokens * asked.ranks / speed, basis)


@lru_cache(maxsize=1)
def _machine():
    return this_machine()


def micro_batch_of(options: dict[str, Any]) -> int:
    return options.get("spec", {}).get("micro_batch") or MICRO_BATCH
