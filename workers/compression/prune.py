"""Pruning: single weights, two of four, whole hidden units or whole experts. Zeros make the file smaller; only removed structure makes it faster."""

import copy
from pathlib import Path
from typing import Any

from workers.compression import magnitude, sparse, structure
from workers.compression.applicable import use_uncounted
from workers.compression.distill import distillation
from workers.compression.folders import describe_result, load_parent, model_card
from workers.compression.goal import Goal
from workers.compression.learning import Learnt, Length, Rates, learn, read_examples
from workers.compression.measure import compare, sample_prompts
from workers.compression.pruning_curve import draw
from workers.compression.quality import evaluate, held_out_if_any
from workers.compression.spec import NARROWING, CompressSpec
from workers.compression.teacher import Teacher
from workers.compression.telling import span, tell
from workers.moe import ChatTokenizer, Decoder, count_parameters, describe, export_tensors, save_tensors, vision_of
from workers.protocol import JobError
from workers.training import pack

RECOVERY_RATES = Rates(lr=2e-3, matrix_lr=0.01)  # half of what a model begins with: it is to be mended, not to be moved
RECOVERY_MINUTES = 1.0
USE_EXAMPLES, USE_BATCH = 512, 64  # on which the use of units and experts is counted

_CARDS = {
    "neuron": "Hidden units that matter least were removed.", "expert": "Experts that matter least were removed, with their rows of the router.",
    "2:4": "Of every four weights the two smallest are zero.", "layer": "The smallest weights of each matrix are zero, and stored as a bit each.",
    "unstructured": "The smallest weights are zero, and stored as a bit each.",
}  # fmt: skip


def run_prune(spec: CompressSpec, *, draws_curve: bool = True) -> dict[str, Any]:
    """`draws_curve`: measure the quality at every sparsity, and of the model that is made; the policy measures what it is given itself."""
    if spec.structure != "2:4" and spec.threshold is None and spec.sparsity is None:
        raise JobError("Give a threshold (weights smaller than it become zero) or a sparsity (the share of weights that become zero).")
    tell(0.0, "Loading the model")
    parent, tokenizer = load_parent(spec.model_folder)
    tell(0.02, "Choosing the weights that matter least")
    worth = worth_of(parent, tokenizer, spec)
    model, masks, chosen = prune(copy.deepcopy(parent), spec, worth)
    rows = held_out_if_any(spec) if draws_curve else []
    with span(0.05, 0.25):
        curve = draw(lambda sparsity, folder: save_at(parent, tokenizer, spec, worth, sparsity, folder), rows, spec)
    learnt = _recover(parent, model, masks, tokenizer, spec)
    save_pruned(model, tokenizer, spec)
    with span(0.8, 0.85):
        quality = {"after": evaluate(spec.output_folder, rows, spec)} if rows else {}
    tell(0.85, "Measuring speed against the parent", eta_seconds=8.0)
    measured = compare(spec.model_folder, spec.output_folder, sample_prompts(spec.dataset_folder, tokenizer, spec.seed))
    details = {
        **measured, **chosen, **_shares(parent, model), "structure": spec.structure, "importance": spec.importance,
        "recovery_steps": learnt.steps if learnt else 0, "recovery": learnt.figures if learnt else {}, **curve, **quality,
    }  # fmt: skip
    return describe_result("pruned", model.config, details)


def _shares(parent: Decoder, model: Decoder) -> dict[str, Any]:
    """The share of weights that are gone, whether they are zero or removed."""
    share, of_all, layers = magnitude.sparsity_of(model)
    before = count_parameters(parent.config)[0]
    if removed := before - count_parameters(model.config)[0]:
        of_all = removed / before
        share = removed / (removed + sum(weight.numel() for weight in magnitude.prunable(model).values()))
    return {"sparsity": share, "sparsity_of_all": of_all, "layers": layers, "removed_parameters": removed}


def worth_of(model: Decoder, tokenizer: ChatTokenizer, spec: CompressSpec) -> structure.Importance | None:
    """What units and experts are worth; None where single weights go. JobError where it is asked by use, and there is no text."""
    if spec.structure not in NARROWING:
        return None
    if spec.importance == "magnitude":
        return structure.by_weight(model)
    if why := use_uncounted(model.config.as_dict()):
        raise JobError(why)
    examples = read_examples(spec.dataset_folder, tokenizer, model.config)
    step = max(1, len(examples) // USE_EXAMPLES)
    spread = examples[::step][:USE_EXAMPLES]  # over the file: neighbours are of one entry
    return structure.by_use(model, [pack(spread[start : start + USE_BATCH]) for start in range(0, len(spread), USE_BATCH)])


def prune(model: Decoder, spec: CompressSpec, worth: structure.Importance | None = None) -> tuple[Decoder, magnitude.Masks, dict[str, Any]]:
    """The pruned model (`model` itself where weights become zero), what is kept of its weights, and what the choice came to.

    JobError where nothing, or nothing useful, is left.
    """
    if spec.structure in NARROWING:
        return _narrow(model, spec, worth)
    weights = magnitude.prunable(model)
    threshold = spec.threshold
    if spec.structure == "2:4":
        masks = magnitude.two_of_four(weights)
    elif threshold is not None:
        masks = magnitude.below_threshold(weights, threshold)
    elif spec.structure == "layer":
        masks = magnitude.smallest_of_each(weights, spec.sparsity or 0.0)
    else:
        masks, threshold = magnitude.smallest_share(weights, spec.sparsity or 0.0)
    if not any(bool(mask.any()) for mask in masks.values()):
        largest = max(float(weight.abs().max()) for weight in weights.values())
        raise JobError(f"With the threshold {threshold} no weight is left: the largest is {largest:.3f}. Choose a smaller one, or give a sparsity.")
    magnitude.apply(model, masks)
    return model, masks, {"threshold": threshold}


def _narrow(model: Decoder, spec: CompressSpec, worth: structure.Importance | None) -> tuple[Decoder, magnitude.Masks, dict[str, Any]]:
    config, share = model.config, spec.sparsity or 0.0
    if spec.structure == "expert":
        if not config.is_moe:
            raise JobError("This model is dense: it has no experts to remove. Remove neurons instead.")
        narrow = structure.without_experts(model, share, worth)
        if narrow.config == config:
            raise JobError(
                f"A sparsity of {share} removes not one of {config.n_experts} experts, of which {config.top_k} see a token. Give a larger one."
            )
        return narrow, {}, {"experts_before": config.n_experts, "experts_after": narrow.config.n_experts}
    width = config.d_expert or config.d_dense
    if spec.threshold is not None:
        count = structure.units_below(model, spec.threshold)
        if not 0 < count < width:
            what = "every" if count else "no"
            raise JobError(
                f"The mean absolute weight of {what} hidden unit is below {spec.threshold}, in the expert where fewest are: give another threshold, "
                "or a sparsity (the share of units to remove)."
            )
        share = count / width
    narrow = structure.without_units(model, share, worth)
    if narrow.config == config:
        raise JobError(f"A sparsity of {share} removes not one of {width} hidden units. Give a larger one.")
    after = narrow.config.d_expert or narrow.config.d_dense
    return narrow, {}, {"threshold": spec.threshold, "hidden_units_before": width, "hidden_units_after": after}


def save_at(parent: Decoder, tokenizer: ChatTokenizer, spec: CompressSpec, worth: structure.Importance | None, sparsity: float, folder: Path) -> bool:
    """Write the model of another sparsity, without recovery, into a folder; False where so small a share removes nothing."""
    at = spec.model_copy(update={"sparsity": sparsity or None, "threshold": None, "output_folder": folder})
    model = copy.deepcopy(parent)
    if sparsity:
        try:
            model, _, _ = prune(model, at, worth)
        except JobError:
            return False
    save_pruned(model, tokenizer, at)
    return True


def save_unrecovered(spec: CompressSpec) -> None:
    """What is left, before it has learnt anything."""
    parent, tokenizer = load_parent(spec.model_folder)
    model, _, _ = prune(parent, spec, worth_of(parent, tokenizer, spec))
    save_pruned(model, tokenizer, spec)


def _recover(parent: Decoder, model: Decoder, masks: magnitude.Masks, tokenizer: ChatTokenizer, spec: CompressSpec) -> Learnt | None:
    """Where steps or minutes are given, what is left learns from the model as it was to make up for what is gone. What is zero stays so."""
    if spec.steps is None and spec.minutes is None:
        return None
    examples = read_examples(spec.dataset_folder, tokenizer, model.config)
    return learn(
        model, examples, distillation(Teacher(parent, examples), model), length=Length.of(spec, RECOVERY_MINUTES), rates=RECOVERY_RATES, seed=spec.seed,
        share=(0.25, 0.8), message="Recovering", work_folder=spec.work_folder, after_step=lambda: magnitude.apply(model, masks),
        goal=Goal.of(spec, tokenizer),
    )  # fmt: skip


def save_pruned(model: Decoder, tokenizer: ChatTokenizer, spec: CompressSpec) -> None:
    """Sparse where that is smaller; a narrower model without zeros is a model like any other."""
    tensors = export_tensors(model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()})
    described = describe(model.config, tokenizer)
    if spec.structure not in NARROWING:
        tensors, storage = sparse.encode(tensors)
        described |= {"storage": storage}
    card = model_card(spec.model_folder, "Pruned", _CARDS[spec.structure])
    save_tensors(spec.output_folder, described, tensors, tokenizer, card, vision_of(model))
