"""Starting training jobs and turning what they produce into model versions."""

import hashlib
import json
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _

from apps import artifacts
from apps.accounts.models import User
from apps.accounts.problems import Conflict, Problem
from apps.accounts.services import record
from apps.datasets.models import Dataset
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.jobs.runs import Command, Run, register
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from apps.training.admission import check_experts, check_memory, check_spec, configuration_of
from apps.training.estimates import CHECKPOINTING, EXPERTS, MICRO_BATCH, pairs_of
from apps.training.learning import check_learning
from apps.training.models import TrainingJob
from apps.training.recipe import merged
from apps.training.selectors import preset
from workers.training.launcher import command_line

STEP_METRICS = (
    "step", "loss", "lr", "tokens_per_second", "grad_norm", "loss_scale", "skipped_steps", "expert_load_max_over_mean", "expert_load_min_over_mean", "elapsed",
    "mfu", "memory_bytes",
)  # fmt: skip
# A dataset of ratings says little next to what the parent has learnt: at the rates of a first training it forgets more (docs/decisions/fine-tuning.md).
GENTLE = {"lr": 1e-3, "matrix_lr": 4e-3}
MAX_MINUTES = 7 * 24 * 60


def _check(*, dataset: Dataset, preset_name: str, steps, minutes, world_size: int, zero_stage: int, precision: str, parent) -> None:
    if dataset.current_run is None or dataset.current_run.status != Job.Status.SUCCEEDED:
        raise Conflict(_("This dataset has not been processed yet. Process it first."), field="dataset")
    if preset(preset_name) is None:
        raise Problem(_("There is no preset %(name)s; see /api/v1/presets/.") % {"name": repr(preset_name)}, field="preset")
    if (steps is None) == (minutes is None):
        raise Problem(_("Give either steps or minutes, not both and not neither."), field="steps", fields=["steps", "minutes"])
    if minutes is not None and not 0 < minutes <= MAX_MINUTES:
        raise Problem(_("The minutes must be more than 0 and at most a week."), field="minutes")
    if zero_stage > 0 and world_size < 2:
        raise Problem(_("ZeRO stage %(stage)s shards over ranks; it needs a world_size of at least 2.") % {"stage": zero_stage}, field="zero_stage",
                      fields=["zero_stage", "world_size"])  # fmt: skip
    if world_size > max(2, settings.CORES):
        raise Problem(
            _("This machine has %(cores)s cores; a world_size of %(world_size)s needs a launcher of its own.")
            % {"cores": settings.CORES, "world_size": world_size},
            field="world_size",
        )
    if parent is not None and parent.kind == ModelVersion.Kind.UPSTREAM:
        raise Problem(
            _("%(name)s is another server's model: there are no weights here to go on from. Import its folder instead.") % {"name": parent.name},
            field="parent",
        )
    if parent is not None and parent.kind not in (ModelVersion.Kind.MOE, ModelVersion.Kind.DENSE, ModelVersion.Kind.DISTILLED):
        raise Problem(
            _("%(name)s is %(kind)s; training goes on from an uncompressed version.") % {"name": parent.name, "kind": parent.get_kind_display()},
            field="parent",
        )


@transaction.atomic
def start(
    *,
    dataset: Dataset,
    preset: str = "nano",
    steps: int | None = None,
    minutes: float | None = None,
    precision: str = TrainingJob.Precision.BF16,
    accum_steps: int = 1,
    zero_stage: int = 0,
    world_size: int = 1,
    expert_parallel_size: int = 1,
    router: str = TrainingJob.Router.SOFTMAX,
    parent: ModelVersion | None = None,
    method: str = TrainingJob.Method.FULL,
    lora: dict | None = None,
    objective: str = TrainingJob.Objective.SFT,
    stages: list[dict] | None = None,
    seed: int = 0,
    domain_routing: float = 0.0,
    micro_batch: int | None = None,
    activation_checkpointing: bool = False,
    recipe: dict | None = None,
    options: dict | None = None,
    actor: User | None,
    source: str = "",
) -> TrainingJob:
    if steps is None and minutes is None:
        minutes = 2.0
    _check(
        dataset=dataset, preset_name=preset, steps=steps, minutes=minutes, world_size=world_size, zero_stage=zero_stage,
        precision=precision, parent=parent,
    )  # fmt: skip
    check_experts(expert_parallel_size=expert_parallel_size, zero_stage=zero_stage, world_size=world_size, preset=preset, parent=parent)
    check_learning(dataset=dataset, parent=parent, method=method, lora=lora, objective=objective, stages=stages or [])
    adapters = {"rank": 8, "alpha": 16.0, **(lora or {})} if method == TrainingJob.Method.LORA else {}
    given = {"micro_batch": micro_batch or MICRO_BATCH, CHECKPOINTING: activation_checkpointing, EXPERTS: expert_parallel_size}
    options = {**(options or {}), "spec": merged((options or {}).get("spec", {}), {**(recipe or {}), **given})}
    check_memory(
        configuration_of(
            preset=preset, precision=precision, accum_steps=accum_steps, world_size=world_size, zero_stage=zero_stage, options=options,
            lora_rank=adapters.get("rank", 0),
            pairs=pairs_of(dataset, objective=objective, stages=any(stage["kind"] == "preference" for stage in stages or [])),
        ),
        dataset=dataset, parent=parent,
    )  # fmt: skip
    job = TrainingJob(
        title=f"Train {preset} on {dataset.name}"[:200], dataset=dataset, run=dataset.current_run, preset=preset, steps=steps, minutes=minutes,
        precision=precision, accum_steps=accum_steps, zero_stage=zero_stage, world_size=world_size, router=router, parent=parent, seed=seed,
        method=method, lora=adapters, objective=objective, stages=stages or [],
        domain_routing=domain_routing, options=options, created_by=actor,
    )  # fmt: skip
    job.full_clean(exclude=["kind", "options", "result", "metrics", "created_by", "spec_sha256"])
    check_spec(spec_of(job, Path()))
    job.spec_sha256 = hashlib.sha256(spec_text(job).encode()).hexdigest()
    if same := _same_under_way(job):
        return same
    job.save()
    record(actor, "training.start", job, after={"preset": preset, "dataset": dataset.name, "steps": steps, "minutes": minutes}, source=source)
    jobs.nudge()
    return job


def _same_under_way(job: TrainingJob) -> TrainingJob | None:
    """One that trains as this one does; whoever else begins work on the dataset waits."""
    jobs.take_turn(job.dataset)
    return jobs.under_way(TrainingJob.objects.filter(dataset=job.dataset, spec_sha256=job.spec_sha256)).first()


def spec_text(job: TrainingJob) -> str:
    """The spec as it is hashed: all that decides the result, and nothing of where this attempt runs."""
    return json.dumps(spec_of(job, Path()), sort_keys=True)


def spec_of(job: TrainingJob, work: Path) -> dict:
    """What the child reads (`workers.training.spec`); `work` is the folder of this attempt."""
    return {
        "version": 1,
        "dataset_folder": str(artifacts.local_path(job.run.folder)),
        "output_folder": str(work / "model"),
        "work_folder": str(work),
        "preset": job.preset,
        "parent_folder": str(artifacts.local_path(job.parent.folder)) if job.parent else None,
        "steps": job.steps,
        "minutes": job.minutes,
        "precision": job.precision,
        "accum_steps": job.accum_steps,
        "zero_stage": job.zero_stage,
        "world_size": job.world_size,
        "router": job.router,
        "seed": job.seed,
        **({"lora": job.lora} if job.lora else {}),
        **(GENTLE if _is_small_beside_its_parent(job) else {}),
        **({"objective": job.objective} if job.objective != TrainingJob.Objective.SFT else {}),
        **({"stages": job.stages} if job.stages else {}),
        "domain_routing": job.domain_routing,
        "threads": settings.JOB_THREADS,
        **job.options.get("spec", {}),
    }


def _is_small_beside_its_parent(job: TrainingJob) -> bool:
    plain = job.method == TrainingJob.Method.FULL and job.objective == TrainingJob.Objective.SFT and not job.stages
    return plain and job.parent is not None and job.dataset.origin == Dataset.Origin.FEEDBACK


def _prepare(job: TrainingJob, work: Path) -> Command:
    if job.parent:
        artifacts.verify(job.parent.folder, job.parent.files)
    return Command(command_line(job.world_size), spec_of(job, work), {})


def _on_event(job: TrainingJob, event: dict) -> dict:
    if event["event"] != "step":
        return {}
    return {"metrics": {name: event[name] for name in STEP_METRICS if event.get(name) is not None}}


def _complete(job: TrainingJob, result: dict, work: Path) -> dict:
    kind = ModelVersion.Kind.MOE if result["total_parameters"] != result["active_parameters"] else ModelVersion.Kind.DENSE
    version = registry.register_version(
        kind=kind, folder=work / "model", parent=job.parent, run=job.run, training_job=job, result=result, actor=job.created_by
    )
    registry.evaluate(version=version, actor=job.created_by, options=job.options)
    return {**result, "folder": version.folder, "model_version": version.pk}


def _before_resume(job: TrainingJob) -> None:
    jobs.require_alone(_same_under_way(job))


register(Job.Kind.TRAINING, Run(_prepare, _complete, _on_event, before_resume=_before_resume))
