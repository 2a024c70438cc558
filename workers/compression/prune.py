"""Pruning by L1 magnitude: single weights, two of four, or whole hidden units. Only the last makes a model faster."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from workers.compression import magnitude, sparse
from workers.compression.folders import describe_result, load_parent, model_card
from workers.compression.learning import Learnt, Length, learn, read_examples
from workers.compression.measure import compare, sample_prompts
from workers.compression.spec import CompressSpec
from workers.compression.telling import tell
from workers.moe import ChatTokenizer, Decoder, count_parameters, describe, export_tensors, save_tensors
from workers.protocol import JobError
from workers.training import Batch

RECOVERY_LR = 5e-4
RECOVERY_MINUTES = 1.0


def run_prune(spec: CompressSpec) -> dict[str, Any]:
    if spec.structure != "2:4" and spec.threshold is None and spec.sparsity is None:
        raise JobError("Give a threshold (weights smaller than it become zero) or a sparsity (the share of weights that become zero).")
    tell(0.0, "Loading the model")
    parent, tokenizer = load_parent(spec.model_folder)
    tell(0.05, "Choosing the weights that matter least")
    model, masks, chosen = prune(parent, spec)
    learnt = _recover(model, masks, tokenizer, spec)
    _save(model, tokenizer, spec)
    tell(0.8, "Measuring speed against the parent", eta_seconds=8.0)
    measured = compare(spec.model_folder, spec.output_folder, sample_prompts(spec.dataset_folder, tokenizer, spec.seed))
    share, of_all, layers = magnitude.sparsity_of(model)
    removed = count_parameters(parent.config)[0] - count_parameters(model.config)[0]
    if removed:
        of_all = removed / count_parameters(parent.config)[0]
        share = removed / (removed + sum(weight.numel() for weight in magnitude.prunable(model).values()))
    details = {
        **measured, **chosen, "structure": spec.structure, "sparsity": share, "sparsity_of_all": of_all, "layers": layers,
        "removed_parameters": removed, "recovery_steps": learnt.steps if learnt else 0, "recovery": learnt.figures if learnt else {},
    }  # fmt: skip
    return describe_result("pruned", model.config, details)


def prune(model: Decoder, spec: CompressSpec) -> tuple[Decoder, magnitude.Masks, dict[str, Any]]:
    """The pruned model, what is kept of its weights, and what the choice came to. JobError where nothing, or nothing useful, is left."""
    if spec.structure == "neuron":
        return _narrow(model, spec)
    weights = magnitude.prunable(model)
    threshold = spec.threshold
    if spec.structure == "2:4":
        masks = magnitude.two_of_four(weights)
    elif threshold is not None:
        masks = magnitude.below_threshold(weights, threshold)
    else:
        masks, threshold = magnitude.smallest_share(weights, spec.sparsity or 0.0)
    if not any(bool(mask.any()) for mask in masks.values()):
        largest = max(float(weight.abs().max()) for weight in weights.values())
        raise JobError(f"With the threshold {threshold} no weight is left: the largest is {largest:.3f}. Choose a smaller one, or give a sparsity.")
    magnitude.apply(model, masks)
    return model, masks, {"threshold": threshold}


def _narrow(model: Decoder, spec: CompressSpec) -> tuple[Decoder, magnitude.Masks, dict[str, Any]]:
    width = model.config.d_expert or model.config.d_dense
    share = spec.sparsity
    if spec.threshold is not None:
        count = magnitude.units_below(model, spec.threshold)
        if not 0 < count < width:
            what = "every" if count else "no"
            raise JobError(
                f"The mean absolute weight of {what} hidden unit is below {spec.threshold}, in the expert where fewest are: give another threshold, "
                "or a sparsity (the share of units to remove)."
            )
        share = count / width
    narrow = magnitude.without_units(model, share or 0.0)
    if narrow.config == model.config:
        raise JobError(f"A sparsity of {share} removes not one of {width} hidden units. Give a larger one.")
    return (
        narrow,
        {},
        {"threshold": spec.threshold, "hidden_units_before": width, "hidden_units_after": narrow.config.d_expert or narrow.config.d_dense},
    )


def _recover(model: Decoder, masks: magnitude.Masks, tokenizer: ChatTokenizer, spec: CompressSpec) -> Learnt | None:
    """Where steps or minutes are given, train what is left to make up for what is gone."""
    if spec.steps is None and spec.minutes is None:
        return None
    examples = read_examples(spec.dataset_folder, tokenizer, model.config.max_seq_len)
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def objective(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        logits = model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)
        loss = F.cross_entropy(logits, batch.targets)
        return loss, {"loss": float(loss.detach())}

    return learn(
        model, examples, objective, length=Length.of(spec, RECOVERY_MINUTES), lr=RECOVERY_LR, seed=spec.seed, share=(0.1, 0.8),
        message="Recovering", after_step=lambda: magnitude.apply(model, masks),
    )  # fmt: skip


def _save(model: Decoder, tokenizer: ChatTokenizer, spec: CompressSpec) -> None:
    """Sparse where that is smaller; a narrower model without zeros is a model like any other."""
    tensors = export_tensors(model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()})
    described = describe(model.config, tokenizer)
    if spec.structure != "neuron":
        tensors, storage = sparse.encode(tensors)
        described |= {"storage": storage}
    text = {"neuron": "Hidden units with the smallest weights were removed.", "2:4": "Of every four weights the two smallest are zero."}
    card = model_card(spec.model_folder, "Pruned", text.get(spec.structure, "The smallest weights are zero, and stored as a bit each."))
    save_tensors(spec.output_folder, described, tensors, tokenizer, card)
