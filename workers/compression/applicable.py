"""Which methods apply to which model, and which of their options. Light: the web process imports it, to refuse before anything is queued."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from workers.compression.spec import STUDENT_PARAMETERS
from workers.compression.student_shapes import fewest_parameters, too_small
from workers.moe.config import ModelConfig

# What each method is told, by the names that CompressSpec has for it.
OPTIONS: dict[str, tuple[str, ...]] = {
    "int8": (),
    "prune": ("threshold", "sparsity", "structure", "importance", "minutes", "steps", "max_bleu_loss", "max_questions"),
    "distill": ("student", "minutes", "steps", "temperature"),
    "onnx": ("weights",),
    "policy": (
        "student", "minutes", "steps", "max_bleu_loss", "min_bleu_ratio", "max_questions", "max_bytes", "max_p99_ms", "min_speed_ratio", "target",
    ),
}  # fmt: skip
_FINISHED = {"int8": "An INT8", "onnx": "An ONNX"}


def applicable(kind: str, method: str, config: dict[str, Any] | None = None) -> str | None:
    """None where the method applies, else a sentence for people that says why it does not.

    `kind`: of the version (moe, dense, pruned, distilled, int8, onnx, upstream); `method`: one of OPTIONS; `config`: the version's, where it
    is known, as ModelConfig.as_dict() says it.
    """
    if kind == "upstream":
        return "An upstream version is another server's model: there are no weights here to compress. Import its folder instead."
    if kind in _FINISHED and (kind, method) != ("int8", "onnx"):
        return f"{_FINISHED[kind]} version is compressed already; compress its parent instead."
    if kind == "pruned" and method == "prune":
        return "This version is pruned already; prune its parent with another threshold or sparsity instead."
    if kind == "pruned" and method == "policy":
        return "The policy starts from a full model; run it on this version's parent, or quantize this one to INT8."
    return _beyond_onnx(config) if config and method == "onnx" else None


def unexportable(kind: str, details: Mapping[str, Any]) -> str | None:
    """None where a version has an export as W8A8, else why not. `details`: what its job measured."""
    if kind != "int8":
        return "Only an INT8 version is exported as W8A8. Quantize this one first."
    if details.get("kept_matrices"):
        return "Some matrices of this version are FP32, which servers of W8A8 do not mix within a layer's experts. Export its INT8 sibling."
    return None


def _beyond_onnx(described: Mapping[str, Any]) -> str | None:
    """The graph that is written is of the plain decoder."""
    config = _config(described)
    if config and (features := config.special_features):
        return f"ONNX does not express what this model has ({', '.join(features)}); quantize, prune or distil it instead."
    return None


def _config(described: Mapping[str, Any]) -> ModelConfig | None:
    """None for a row that does not say what the model is; the job reads the folder, and says the same."""
    try:
        return ModelConfig.from_dict(dict(described))
    except (TypeError, ValueError):
        return None


class Model(NamedTuple):
    """What is known of a version without reading it."""

    config: Mapping[str, Any]  # of its ModelConfig; empty where it is not known
    parameters: int
    has_text: bool  # it was trained here, on a dataset that is still known
    has_questions: bool  # that dataset holds held-out questions


class Refusal(NamedTuple):
    field: str
    reason: str


def unusable(model: Model, method: str, options: Mapping[str, Any], preset_parameters: Mapping[str, int]) -> Refusal | None:
    """Why these options cannot work for this model; None where they may."""
    if method == "prune":
        return _unprunable(model, options)
    preset = options.get("student")
    if method == "distill" and preset and preset_parameters.get(preset, 0) >= model.parameters > 0:
        return Refusal(
            "student", f"A student of the preset {preset} would not be smaller than its teacher. Choose a smaller preset, or leave it out."
        )
    if method == "distill" and not preset and (why := _childless(model)):
        return Refusal("method", why)
    if method == "policy" and options.get("target") == "onnx" and (why := _beyond_onnx(model.config)):
        return Refusal("target", why)
    if method == "policy" and not model.has_questions:
        return Refusal("method", "The dataset holds no held-out question, so that quality cannot be measured. Choose a method yourself.")
    return None


def _childless(teacher: Model) -> str | None:
    config = _config(teacher.config)
    fewest = fewest_parameters(config) if config else 0
    return too_small(STUDENT_PARAMETERS, fewest) if fewest > STUDENT_PARAMETERS * teacher.parameters > 0 else None


def _unprunable(model: Model, options: Mapping[str, Any]) -> Refusal | None:
    by_use, share = options.get("importance") == "use", options.get("sparsity") or 0.0
    if not model.has_text:
        for field, wanted in (("minutes", options.get("minutes") or options.get("steps")), ("importance", by_use)):
            if wanted:
                return Refusal(field, "This model was not trained here, so there is no text to learn from. Train from it on a dataset first.")
    if by_use and (why := use_uncounted(model.config)):
        return Refusal("importance", why)
    if options.get("structure") == "neuron" and share:
        return _no_unit_goes(model.config, share)
    if options.get("structure") == "expert" and "n_experts" in model.config:
        return _no_expert_goes(model.config, share)
    return None


def _no_unit_goes(described: Mapping[str, Any], share: float) -> Refusal | None:
    widths = [described[name] for name in ("d_expert", "d_dense") if described.get(name)]
    if widths and all(units_left(width, share) == width for width in widths):
        return Refusal("sparsity", f"A sparsity of {share} removes not one of {widths[0]} hidden units. Give a larger one.")
    return None


def _no_expert_goes(described: Mapping[str, Any], share: float) -> Refusal | None:
    experts, used = described["n_experts"], described.get("top_k", 0)
    if not experts:
        return Refusal("structure", "This model is dense: it has no experts to remove. Remove neurons instead.")
    if described.get("router_groups", 1) > 1:
        reason = "This model's experts stand in groups, from which whole experts cannot be taken. Remove neurons instead."
        return Refusal("structure", reason)
    if max(used, round(experts * (1 - share))) == experts:
        return Refusal("sparsity", f"That share removes not one of {experts} experts, of which {used} see a token. Give a larger one.")
    return None


def use_uncounted(described: Mapping[str, Any]) -> str | None:
    """None where it can be counted what the dataset's tokens make of neurons and experts, else why not."""
    if described.get("expert_bias") or described.get("swiglu_limit"):
        return "Use is counted for plain SwiGLU experts only, and this model's have biases or limits. Let their magnitude decide."
    return None


def units_left(width: int, sparsity: float) -> int:
    """Of so many hidden units, how many stay: at least one."""
    return max(1, round(width * (1 - sparsity))) if width else 0
