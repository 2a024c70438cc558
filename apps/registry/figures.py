"""What a compression was asked for and what it measured, in words, with units."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.utils.functional import Promise
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from apps.portal.templatetags.portal import decimals, duration, exact, percent, size

BATCHES = ("batch_1", "batch_8", "batch_32")  # answers at a time, of which compressions tell the speed

_share = partial(percent, digits=1)
_points, _ratio = partial(decimals, digits=1), partial(decimals, digits=2)


def _small(value: float) -> str:
    return f"{value:.3g}"


# By the names that jobs give them: docs/architecture.md.
FIGURES: dict[str, tuple[Promise, Callable[[Any], str]]] = {
    "bytes_before": (gettext_lazy("Size before"), size),
    "bytes_after": (gettext_lazy("Size after"), size),
    "size_ratio": (gettext_lazy("Size, share of the parent's"), _share),
    "parameter_ratio": (gettext_lazy("Parameters, share of the parent's"), _share),
    "removed_parameters": (gettext_lazy("Parameters removed"), exact),
    "experts_before": (gettext_lazy("Experts of a layer before"), exact),
    "experts_after": (gettext_lazy("Experts of a layer after"), exact),
    "hidden_units_before": (gettext_lazy("Hidden units of an expert before"), exact),
    "hidden_units_after": (gettext_lazy("Hidden units of an expert after"), exact),
    "tokens_per_second_before": (gettext_lazy("Decoding before, tokens/s"), exact),
    "tokens_per_second_after": (gettext_lazy("Decoding after, tokens/s"), exact),
    "speed_ratio": (gettext_lazy("Decoding, times the parent's speed"), _ratio),
    "prompt_ms_before": (gettext_lazy("Reading a prompt before, ms"), _ratio),
    "prompt_ms_after": (gettext_lazy("Reading a prompt after, ms"), _ratio),
    "greedy_agreement": (gettext_lazy("Greedy answers equal to the parent's"), percent),
    "questions": (gettext_lazy("Questions compared"), exact),
    "max_abs_error": (gettext_lazy("Largest difference of a logit"), _small),
    "mean_abs_error": (gettext_lazy("Mean difference of a logit"), _small),
    "logit_deviation": (gettext_lazy("Standard deviation of the logits, beside it"), _small),
    "weight_max_abs_error": (gettext_lazy("Largest error of a weight"), _small),
    "weight_relative_error": (gettext_lazy("Error of the weights, share of their norm"), _share),
    "quantized_share": (gettext_lazy("Weights that became INT8"), _share),
    "kept_matrices": (gettext_lazy("Matrices left FP32"), exact),
    "kernel": (gettext_lazy("Instructions of the processor"), str),
    "threshold": (gettext_lazy("Threshold"), _small),
    "sparsity": (gettext_lazy("Sparsity of the layers pruned"), _share),
    "sparsity_of_all": (gettext_lazy("Sparsity of all weights"), _share),
    "recommended_sparsity": (gettext_lazy("Recommended sparsity, without recovery"), _share),
    "structure": (gettext_lazy("Structure"), str),
    "importance": (gettext_lazy("Importance by"), str),
    "recovery_steps": (gettext_lazy("Steps of recovery"), exact),
    "student": (gettext_lazy("Student"), str),
    "alpha": (gettext_lazy("Weight of the teacher's answers in the loss"), percent),
    "temperature": (gettext_lazy("Temperature"), _small),
    "turns": (gettext_lazy("Turns of a conversation learned, at most"), exact),
    "steps": (gettext_lazy("Steps of learning"), exact),
    "seconds": (gettext_lazy("Time of learning"), duration),
    "minutes": (gettext_lazy("Minutes"), _ratio),
    "questions_answered_by_teacher": (gettext_lazy("Questions that the teacher answered"), exact),
    "divergence_before": (gettext_lazy("Divergence from the teacher before"), _small),
    "divergence_after": (gettext_lazy("Divergence from the teacher after"), _small),
    "opset": (gettext_lazy("ONNX opset"), str),
    "nodes": (gettext_lazy("Nodes of the graph"), exact),
    "weights": (gettext_lazy("Weights"), str),
    "bleu": (gettext_lazy("BLEU"), _points),
    "parent_bleu": (gettext_lazy("BLEU of the parent"), _points),
    "step": (gettext_lazy("Chosen"), str),
    "target": (gettext_lazy("Runs on"), str),
    "max_bleu_loss": (gettext_lazy("BLEU points it may lose"), _points),
    "min_bleu_ratio": (gettext_lazy("Least BLEU, share of the parent's"), _share),
    "max_bytes": (gettext_lazy("Largest size"), size),
    "max_p99_ms": (gettext_lazy("Largest P99, ms"), exact),
    "min_speed_ratio": (gettext_lazy("Least speed, times the parent's"), _ratio),
    "max_questions": (gettext_lazy("Questions asked, at most"), exact),
}  # fmt: skip


def figures_told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and figures for people, whatever the method reported; lists and tables are drawn elsewhere."""
    told = []
    for key, value in found.items():
        name, how = FIGURES.get(key, (capfirst(key.replace("_", " ")), str))
        if isinstance(value, dict) and set(value) == set(BATCHES):
            told.append((_("%(figure)s, 1 / 8 / 32 at once") % {"figure": name}, " / ".join(_three_digits(value[b]) for b in BATCHES)))
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            told.append((str(name), how(value)))
    return told


def _three_digits(value: float) -> str:
    return decimals(value, 2 if value < 100 else 0)
