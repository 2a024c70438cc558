"""The stages of a run, one after the other. Without any, a run is one stage: the dataset's own mixture, or its preferences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.protocol import JobError
from workers.training.examples import Example
from workers.training.objectives import CrossEntropy, Objective
from workers.training.preference import Preference
from workers.training.prepare import Prepared
from workers.training.ranks import Ranks
from workers.training.spec import StageSpec, TrainSpec

# What a stage is made of, in the mission's words and in those of train.jsonl.
KINDS = {"text": "document", "questions": "question", "adversarial": "claim"}


@dataclass(frozen=True)
class Stage:
    kind: str
    units: Sequence[Any]
    weights: np.ndarray  # (units,) how often each comes in an epoch
    until: float  # the share of the run at which it ends
    lr: float  # times the run's learning rates
    objective: Objective


def stages_of(spec: TrainSpec, prepared: Prepared, ranks: Ranks, max_length: int) -> list[Stage]:
    """In order; the last ends at 1. JobError where the dataset lacks what a stage is of."""
    cross_entropy = CrossEntropy(spec.conversations, max_length)
    if not spec.stages and not spec.preference_method:
        return [Stage("mixture", prepared.examples, prepared.weights, 1.0, 1.0, cross_entropy)]
    wanted = spec.stages or (StageSpec(kind="preference", share=1.0, rehearsal=0.0),)
    total, until = sum(stage.share for stage in wanted), 0.0
    stages: list[Stage] = []
    for number, stage in enumerate(wanted):
        until = until + stage.share / total if number + 1 < len(wanted) else 1.0
        if stage.kind == "preference":
            units = prepared.preferences
            objective: Objective = Preference(
                units, spec.preference_method or "dpo", beta=spec.beta, likelihood=spec.chosen_likelihood, ranks=ranks,
                reference_file=spec.work_folder / f"reference-{number}.safetensors",
            )  # fmt: skip
            stages.append(Stage(stage.kind, units, np.ones(len(units)), until, spec.preference_lr, objective))
        else:
            earlier = {str(s.kind) for s in wanted[:number]} - {stage.kind}
            stages.append(Stage(stage.kind, prepared.examples, _weights(prepared, stage, earlier), until, 1.0, cross_entropy))
    return stages


def stage_at(stages: Sequence[Stage], done: float) -> int:
    """The number of the stage that a run is in when `done` of it is done."""
    return next((number for number, stage in enumerate(stages) if done < stage.until), len(stages) - 1)


def _weights(prepared: Prepared, stage: StageSpec, earlier: set[str]) -> np.ndarray:
    """The mixture's weights where an example is of the stage's kind, 0 elsewhere; and `rehearsal` of all drawn are of the earlier kinds."""
    own = _of_kinds(prepared.examples, {stage.kind})
    before = _of_kinds(prepared.examples, earlier)
    weights = np.where(own | before, prepared.weights, 0.0)
    if not weights[own].sum():
        raise JobError(f"The dataset has nothing for the stage {stage.kind!r} ({KINDS[stage.kind]}s). Leave the stage out, or add such rows.")
    share = stage.rehearsal if weights[before].sum() else 0.0
    weights[own] *= (1 - share) / weights[own].sum()
    weights[before] *= share / max(weights[before].sum(), 1e-12)
    return weights / weights.max()


def _of_kinds(examples: Sequence[Example], kinds: set[str]) -> np.ndarray:
    wanted = {KINDS[kind] for kind in kinds if kind in KINDS}
    return np.array([example.kind in wanted for example in examples], bool)
