"""INT8: weights rounded once and stored so, activations rounded at run time (`int8_runner`)."""

from contextlib import closing
from typing import Any

import torch

from workers.compression import quantization
from workers.compression.folders import describe_result, load_parent, model_card
from workers.compression.int8_product import KERNEL
from workers.compression.measure import compare, logit_error, sample_prompts
from workers.compression.runners import open_runner
from workers.compression.spec import CompressSpec
from workers.compression.telling import tell
from workers.moe import ChatTokenizer, Decoder, export_tensors, save_tensors, vision_of


def run_int8(spec: CompressSpec) -> dict[str, Any]:
    model, tokenizer, errors = save_int8(spec)
    tell(0.15, "Compiling the 8-bit products; only the first time on a machine", eta_seconds=20.0)
    prompts = sample_prompts(spec.dataset_folder, tokenizer, spec.seed)
    room = model.config.max_seq_len - 1
    runner = open_runner(spec.output_folder, threads=spec.threads, max_batch=8, max_seq_len=model.config.max_seq_len)
    assert runner is not None
    with closing(runner):
        logits = logit_error(model, runner, [tokenizer.encode_prompt(prompt)[:room] for prompt in prompts])
    tell(0.6, "Measuring speed against the parent", eta_seconds=5.0)
    measured = compare(spec.model_folder, spec.output_folder, prompts)
    return describe_result("int8", model.config, {**measured, **logits, **errors, "kernel": KERNEL})


def save_int8(spec: CompressSpec) -> tuple[Decoder, ChatTokenizer, dict[str, Any]]:
    """Write the rounded model. Its parent, and what rounding did (`_rounding`)."""
    tell(0.0, "Loading the model")
    model, tokenizer = load_parent(spec.model_folder, "int8")
    tell(0.05, "Rounding the weights to 8 bits")
    exported = export_tensors(model.config, {k: v.detach() for k, v in model.state_dict().items()})
    stored = quantization.encode(exported)
    described = quantization.describe_quantized(model.config, tokenizer, stored)
    errors = _rounding(exported, quantization.decode(stored, described["storage"]))
    card = model_card(spec.model_folder, "INT8", "8-bit weights with one scale for each output; activations are rounded to 8 bits at run time.")
    save_tensors(spec.output_folder, described, stored, tokenizer, card, vision_of(model))
    return model, tokenizer, errors


def _rounding(exported: quantization.Tensors, decoded: quantization.Tensors) -> dict[str, Any]:
    """What rounding did to the weights: the largest error, and the error's energy as a share of theirs."""
    names = [name for name, tensor in exported.items() if quantization.is_quantized(name) and tensor.numel()]
    noise = sum(float((decoded[name] - exported[name]).square().sum()) for name in names)
    signal = sum(float(exported[name].square().sum()) for name in names)
    return {
        "weight_max_abs_error": max(float((decoded[name] - exported[name]).abs().max()) for name in names),
        "weight_relative_error": (noise / max(signal, torch.finfo(torch.float32).tiny)) ** 0.5,
        "quantized_share": sum(exported[name].numel() for name in names) / sum(t.numel() for t in exported.values()),
    }
