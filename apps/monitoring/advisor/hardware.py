"""Which hardware, how many, at what memory, speed and cost: `advise`. Every figure comes with the formula that gave it."""

from django.utils.translation import gettext as _

from apps.accounts.problems import Problem
from apps.monitoring.advisor.answer import MAX_GPUS, HardwareAdvice
from apps.monitoring.advisor.serving import serving_advice
from apps.monitoring.advisor.training import training_advice
from workers.planning import RECIPES, Shape

PURPOSES = ("train", "serve")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
PRECISION_CHOICES = [(name, name.upper()) for name in PRECISIONS]
TOKENS_A_PARAMETER = 20  # Chinchilla (Hoffmann et al. 2022), by the active parameters


def advise(
    *, shape: Shape, purpose: str = "train", gpus: int = 1, zero_stage: int = 0, precision: str | None = None, batch: int = 8,
    sequence: int | None = None, qps: float = 10.0, p99_ms: float = 500.0, answer_tokens: int = 64, tokens: float | None = None,
    days: float | None = None, recipe: str = "paper", checkpointing: bool = False,
) -> HardwareAdvice:  # fmt: skip
    """`batch` and `sequence` are those of one rank's forward pass; `tokens` is how many the training reads, in at most `days` where
    these are given. Raises Problem at a bad argument.
    """
    precision = precision or ("bf16" if purpose == "train" else "int8")
    sequence = sequence or shape.max_seq_len
    _check(purpose, gpus, zero_stage, precision, batch, sequence, qps, p99_ms, answer_tokens, tokens, days, recipe)
    if purpose == "train":
        tokens = tokens or float(TOKENS_A_PARAMETER * shape.active_parameters)
        return training_advice(shape, gpus, zero_stage, precision, batch, sequence, tokens, days, recipe, checkpointing)
    return serving_advice(shape, gpus, precision, sequence, qps, p99_ms, answer_tokens)


def _check(purpose, gpus, zero_stage, precision, batch, sequence, qps, p99_ms, answer_tokens, tokens, days, recipe) -> None:
    if purpose not in PURPOSES:
        raise Problem(_("The purpose is one of %(names)s.") % {"names": ", ".join(PURPOSES)}, field="purpose")
    if precision not in PRECISIONS or (purpose == "train" and precision == "int8"):
        raise Problem(_("The precision is fp32, bf16 or fp16; for serving also int8."), field="precision")
    if recipe not in RECIPES:
        raise Problem(_("The recipe is one of %(names)s.") % {"names": ", ".join(RECIPES)}, field="recipe")
    bounds = {
        "gpus": (gpus, 1, MAX_GPUS), "zero_stage": (zero_stage, 0, 3), "batch": (batch, 1, 1_000_000), "sequence": (sequence, 1, 10_000_000),
        "qps": (qps, 1e-6, 1e9), "p99_ms": (p99_ms, 1e-3, 1e9), "answer_tokens": (answer_tokens, 1, 1_000_000), "tokens": (tokens or 1, 1, 1e18),
        "days": (days or 1, 1e-3, 1e5),
    }  # fmt: skip
    for field, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise Problem(
                _("%(field)s must be between %(low)s and %(high)s.") % {"field": field, "low": f"{low:g}", "high": f"{high:g}"}, field=field
            )
