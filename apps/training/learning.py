"""What a run learns from and what of the model it moves, checked before it is queued."""

from typing import Any

from django.utils.translation import gettext as _

from apps.accounts.problems import Conflict, Problem
from apps.datasets.models import Dataset
from apps.registry.models import ModelVersion
from apps.training.models import TrainingJob

# A stage's kind, and the kind of the rows of train.jsonl that it is of.
ROWS_OF_STAGE = {"text": "document", "questions": "question", "adversarial": "claim"}


def check_learning(
    *, dataset: Dataset, parent: ModelVersion | None, method: str, lora: dict[str, Any] | None, objective: str, stages: list[dict[str, Any]]
) -> None:
    """Raises Problem or Conflict at the field that cannot be."""
    if method == TrainingJob.Method.LORA and parent is None:
        raise Problem(_("LoRA adapts the weights of a version: choose the one to go on from."), field="method")
    if lora and method != TrainingJob.Method.LORA:
        raise Problem(_("The adapter's rank, alpha and targets go with method lora."), field="lora")
    prefers = objective != TrainingJob.Objective.SFT
    if prefers and parent is None and not stages:
        raise Problem(
            _("Learning from preferences starts from a version, which it must not leave far behind: choose the one to go on from."), field="objective"
        )
    if prefers and stages and not any(stage["kind"] == "preference" for stage in stages):
        raise Problem(_("DPO and KTO belong to a stage of kind preference, and the stages have none."), field="stages")
    if prefers or any(stage["kind"] == "preference" for stage in stages):
        _check_ratings(dataset, objective if prefers else TrainingJob.Objective.DPO.value, "objective" if prefers else "stages")
    there = kinds_of(dataset)
    for stage in stages:
        kind = ROWS_OF_STAGE.get(stage["kind"])
        if kind and kind not in there:
            raise Conflict(
                _("The dataset has no rows for the stage %(stage)s. Leave the stage out, or choose another dataset.") % {"stage": stage["kind"]},
                field="stages",
            )


def _check_ratings(dataset: Dataset, objective: str, field: str) -> None:
    found = _report(dataset).get("preferences")
    if found is None:
        raise Conflict(_("This dataset was processed before ratings were kept for preference training. Process it again."), field=field)
    if objective == TrainingJob.Objective.DPO and not found["pairs"]:
        raise Conflict(
            _(
                "DPO needs two answers to one question of which one was rated higher, or an answer that was rated low and corrected. This dataset has none."
            ),
            field=field,
        )
    if objective == TrainingJob.Objective.KTO and not (found["good"] and found["bad"]):
        raise Conflict(
            _("KTO needs answers rated good (4 or 5, or a correction) and answers rated bad (1 or 2). This dataset has %(good)s and %(bad)s.")
            % {"good": found["good"], "bad": found["bad"]},
            field=field,
        )


def kinds_of(dataset: Dataset) -> set[str]:
    """The kinds of rows that training would read."""
    return {part["kind"] for part in _report(dataset).get("mixture", []) if part["split"] == "train" and part["rows"]}


def curriculum_for(dataset: Dataset) -> list[dict[str, Any]]:
    """The mission's order, of what the dataset has. Questions take most of a run; later stages rehearse what came before."""
    there, found = kinds_of(dataset), _report(dataset).get("preferences") or {}
    wanted = [("text", 1.0, 0.0), ("questions", 6.0, 0.0), ("adversarial", 2.0, 0.5)]
    stages = [{"kind": kind, "share": share, "rehearsal": again} for kind, share, again in wanted if ROWS_OF_STAGE[kind] in there]
    if found.get("pairs"):
        stages.append({"kind": "preference", "share": 1.0, "rehearsal": 0.0})
    return stages


def _report(dataset: Dataset) -> dict[str, Any]:
    return dataset.current_run.report if dataset.current_run else {}
