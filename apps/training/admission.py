"""Whether a run may be queued: what cannot work, or does not fit the machine, is refused with the figures and the way out."""

import re
from typing import Any

from django.utils.translation import gettext as _
from pydantic import ValidationError

from apps.accounts.problems import Problem
from apps.datasets.models import Dataset
from apps.monitoring.advisor.memory import MOMENTS, explained, in_words, size
from apps.registry.models import ModelVersion
from apps.training.estimates import CHECKPOINTING, EXPERTS, micro_batch_of, plan, shape_of
from workers.planning import Configuration, Planned
from workers.training.spec import TrainSpec


def configuration_of(
    *, preset: str, precision: str, accum_steps: int, world_size: int, zero_stage: int, options: dict[str, Any] | None = None, lora_rank: int = 0,
    pairs: int = 0,
) -> Configuration:  # fmt: skip
    """`pairs`: of answers that preferences are learnt from."""
    spec = (options or {}).get("spec", {})
    return Configuration(
        preset, precision, micro_batch_of(options or {}), accum_steps, world_size, zero_stage, bool(spec.get(CHECKPOINTING)),
        lora_rank or (spec.get("lora") or {}).get("rank", 0), spec.get(EXPERTS, 1), bool(spec.get("ema_decay")), pairs,
        spec.get("optimizer", "muon"),
    )  # fmt: skip


def check_memory(configuration: Configuration, *, dataset: Dataset, parent: ModelVersion | None) -> None:
    """Raises Problem with `memory` (bytes by part) and `nearest` (fields to change), where the ranks together do not fit this machine."""
    made = plan(configuration=configuration, dataset=dataset, parent=parent)
    if made.fits:
        return
    asked = made.asked
    detail = _(
        "It will not fit: %(moment)s each of %(ranks)s processes needs %(need)s (%(parts)s), together %(all)s; this machine has %(room)s to give."
    ) % {
        "moment": MOMENTS[asked.moment], "ranks": configuration.ranks, "need": size(asked.rank_bytes), "parts": in_words(asked.parts),
        "all": size(asked.bytes_in_all), "room": size(made.room),
    }  # fmt: skip
    changes = changes_of(configuration, made.nearest) if made.nearest else {}
    if made.nearest:
        detail += " " + _("The nearest that fits: %(changes)s (%(size)s).") % {
            "changes": ", ".join(f"{name} {value}" for name, value in changes.items()), "size": size(made.nearest.bytes_in_all),
        }  # fmt: skip
    else:
        detail += " " + _("No smaller batch, higher ZeRO stage or preset fits; it needs a larger machine.")
    memory = {"parts": [{"name": p.name, "bytes": round(p.bytes), "formula": p.formula} for p in explained(asked.parts)], "moment": asked.moment,
              "rank_bytes": round(asked.rank_bytes), "bytes": round(asked.bytes_in_all), "room_bytes": round(made.room)}  # fmt: skip
    raise Problem(detail, field="preset", memory=memory, nearest=changes or None)


def check_experts(*, expert_parallel_size: int, zero_stage: int, world_size: int, preset: str, parent: ModelVersion | None) -> None:
    """Whether experts can be spread so. Raises Problem at the field, with those that disagree."""
    if expert_parallel_size == 1:
        return
    values = {"size": expert_parallel_size, "stage": zero_stage, "ranks": world_size}
    if zero_stage > 1:
        raise Problem(
            _("expert_parallel_size %(size)s goes with zero_stage 0 or 1: stage %(stage)s shards the experts over all ranks already.") % values,
            field="expert_parallel_size", fields=["expert_parallel_size", "zero_stage"],
        )  # fmt: skip
    if world_size % expert_parallel_size:
        raise Problem(
            _("A world_size of %(ranks)s is no multiple of expert_parallel_size %(size)s.") % values,
            field="expert_parallel_size", fields=["expert_parallel_size", "world_size"],
        )  # fmt: skip
    shape = shape_of(preset, parent)
    if shape.estimated:
        return  # whose experts are only known when it is read
    if not shape.n_experts or shape.n_experts % expert_parallel_size:
        raise Problem(
            _("%(name)s has %(n)s experts a layer, which cannot be spread evenly over expert_parallel_size %(size)s.")
            % {**values, "name": shape.name, "n": shape.n_experts},
            field="expert_parallel_size", fields=["expert_parallel_size", "parent" if parent else "preset"],
        )  # fmt: skip


def changes_of(asked: Configuration, found: Planned) -> dict[str, Any]:
    """The fields of a training job that lead from what was asked for to what was found, by their names in forms and over REST."""
    names = {
        "preset": "preset", "micro_batch": "micro_batch", "accum_steps": "accum_steps", "ranks": "world_size", "stage": "zero_stage",
        "checkpointing": CHECKPOINTING, "expert_ranks": EXPERTS,
    }  # fmt: skip
    return {
        field: getattr(found.configuration, name)
        for name, field in names.items()
        if getattr(found.configuration, name) != getattr(asked, name)
    }  # fmt: skip


def check_spec(spec: dict[str, Any]) -> None:
    """What the child would refuse after it was queued and started is refused now. Raises Problem, naming the fields that disagree."""
    try:
        TrainSpec.model_validate(spec)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        fields = [str(part) for part in first["loc"] if isinstance(part, str)] or [
            name for name in TrainSpec.model_fields if re.search(rf"\b{name}\b", message)
        ]
        where = f"{' · '.join(fields)}: " if fields else ""
        raise Problem(f"{where}{message}", field=fields[0] if fields else None, fields=fields) from error
