"""Mixed precision: which matrices lose most by 8 bits, and the model with those left in FP32.

A matrix is as sensitive as the model's answers change when it alone is rounded: the mean KL divergence of the next token, on some examples
(as HAWQ and ZeroQ rank layers; Cai et al. 2020 §3.2). The most sensitive stay FP32, as few as the budget of bytes allows.
"""

from typing import Any

import torch

from workers.compression import quantization, w8a8
from workers.compression.folders import describe_result, load_parent, model_card
from workers.compression.learning import read_examples
from workers.compression.spec import CompressSpec
from workers.compression.telling import tell
from workers.moe import Decoder, export_tensors, import_tensors, layout_named, save_tensors, vision_of
from workers.training import Batch, pack

EXAMPLES = 64
KEPT_SHARE = 0.15  # of the weights that stay FP32: the file is then at most 36 % of the parent's

Tensors = quantization.Tensors


def run_mixed(spec: CompressSpec) -> dict[str, Any]:
    """A child of which the least sensitive matrices are 8-bit in the file. The engine decodes it: smaller, and as fast as its parent."""
    model, tokenizer = load_parent(spec.model_folder)
    examples = read_examples(spec.dataset_folder, tokenizer, model.config)
    spread = examples[:: max(1, len(examples) // EXAMPLES)][:EXAMPLES]
    exported = export_tensors(model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()})
    tell(0.1, "Rounding one matrix at a time")
    ranked = sensitivities(model, model.config.family, exported, pack(spread))
    kept = most_sensitive(ranked, exported, KEPT_SHARE)
    stored = quantization.encode(exported, kept)
    written = quantization.describe_quantized(model.config, tokenizer, stored, w8a8.MIXED)
    card = model_card(spec.model_folder, "Mixed precision", "8-bit weights where that changes answers least, FP32 elsewhere; computed in FP32.")
    save_tensors(spec.output_folder, written, stored, tokenizer, card, vision_of(model))
    layers = [{"name": name, "divergence": value, "weights": exported[name].numel(), "kept": name in kept} for name, value in ranked.items()]
    return describe_result("int8", model.config, {"sensitivity": layers, "kept_matrices": len(kept), "kernel": "none: decoded to FP32 at load"})


@torch.no_grad()
def sensitivities(model: Decoder, model_type: str, exported: Tensors, batch: Batch) -> dict[str, float]:
    """Each matrix's divergence in nats, the most sensitive first."""
    wanted = _log_probabilities(model, batch)
    found: dict[str, float] = {}
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in exported.items():
        if not quantization.is_quantized(name) or not tensor.numel():
            continue
        rounded = quantization.dequantize(*quantization.quantize(tensor))
        model.load_state_dict(original | import_tensors(layout_named(model_type), model.config, exported | {name: rounded}))
        changed = _log_probabilities(model, batch)
        found[name] = float((wanted.exp() * (wanted - changed)).sum(-1).mean())
    model.load_state_dict(original)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def most_sensitive(ranked: dict[str, float], exported: Tensors, share: float) -> list[str]:
    """The most sensitive matrices, in order, as long as they are together at most so large a share of the weights; at least one."""
    room = share * sum(exported[name].numel() for name in ranked)
    kept: list[str] = []
    for name in ranked:
        if kept and sum(exported[other].numel() for other in kept) + exported[name].numel() > room:
            continue
        kept.append(name)
    return kept


def _log_probabilities(model: Decoder, batch: Batch) -> torch.Tensor:
    logits = model(batch.tokens, **batch.inputs)[: batch.learnt_count]
    return torch.log_softmax(logits.float(), -1)
