"""Low-rank adapters in PEFT's layout: ours written in it, and other people's added to a parent's weights.

PEFT names the modules of `transformers`, of whose matrices ours are made (`workers.moe.layouts`). What a layout does to a matrix, it
does to its outputs only: so A is the same for all of the matrices that one of ours is made of, and B is taken apart as the matrix is.
`transformers` stacks experts whatever the files say, so an adapter of them is one of two parameters (`target_parameters`), each
wrapped around the one before: A is (E · rank, inputs), and B (outputs, rank · E), the expert running fastest.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.moe.checkpoint import BrokenModel
from workers.moe.config import ModelConfig
from workers.moe.layouts import Entry, Tensors, UnsupportedModel, layout_of
from workers.moe.layouts.parts import assemble, take_apart
from workers.moe.model import Decoder

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_STACKS = ("gate_up_proj", "down_proj")  # in the order in which transformers registers, and PEFT wraps, them

_DENSE = ("llama", "qwen3")  # architectures of which PEFT expects no experts

Pair = tuple[Tensor, Tensor]  # A (…, rank, inputs), B (…, outputs, rank); what they add is (alpha / rank) · B A

# What other settings mean is not what is computed here. Each with the values that change nothing.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "use_dora": (False, None), "bias": ("none",), "lora_bias": (False, None), "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "alora_invocation_tokens": (None,),
}  # fmt: skip


# -- writing


def save_adapter(folder: Path, config: ModelConfig, pairs: Mapping[str, Pair], rank: int, alpha: float) -> None:
    """Write a folder that PEFT loads onto the parent, as transformers opens it. `pairs`: by the names of the decoder's parameters."""
    tensors: Tensors = {}
    modules, parameters = set(), set()
    for entry in _entries(config):
        if entry.ours not in pairs:
            continue
        a, b = pairs[entry.ours]
        if ".experts." in entry.ours:
            where, stack = _stack_of(entry)
            inner = ".base_layer" if stack == _STACKS[0] else ""
            tensors |= _named(f"{where}{inner}", a.flatten(0, 1), _their_outputs(entry, b).permute(1, 2, 0).flatten(1))
            parameters.add(f"mlp.experts.{stack}")
            continue
        for name, part in _apart(entry, b).items():
            module = name.removesuffix(".weight")
            tensors |= _named(module, a, part)
            local = module.split(".", 3)[-1]  # without the layer
            if config.family not in _DENSE and local.startswith("mlp."):
                # By its module's name PEFT takes it for an expert of transformers 4, which it looks for in the stacks.
                parameters.add(f"{local}.weight")
            else:
                modules.add(local.rsplit(".", 1)[-1])
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    described = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
        "bias": "none", "target_modules": sorted(modules), "target_parameters": sorted(parameters) or None, "inference_mode": True,
    }  # fmt: skip
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n")


def _named(module: str, a: Tensor, b: Tensor) -> Tensors:
    return {f"{_PREFIX}{module}.lora_A.weight": a.clone(), f"{_PREFIX}{module}.lora_B.weight": b.clone(memory_format=torch.contiguous_format)}


# -- reading


def add_adapter(model: Decoder, folder: Path) -> None:
    """Add what a PEFT folder says to the model's weights, in place. BrokenModel, UnsupportedModel; then the model is to be thrown away."""
    scale, targets = _read_settings(folder)
    pairs = _read_pairs(folder)
    left = set(pairs)
    for entry in _entries(model.config):
        try:
            found = _difference(entry, pairs, targets)
            if found is not None:
                difference, used = found
                left -= used
                model.get_parameter(entry.ours).data.add_(difference, alpha=scale)
        except (RuntimeError, ValueError, AttributeError) as error:
            raise BrokenModel(f"The adapter does not fit this parent's {entry.ours}: {error}.") from error
    if left:
        raise UnsupportedModel(f"The adapter changes {sorted(left)[0]}, which this parent does not have, or cannot be adapted in.")


def _read_settings(folder: Path) -> tuple[float, tuple[str, ...]]:
    """What differences are multiplied by, and the parameters that are adapted by name."""
    try:
        said = json.loads((folder / CONFIG_FILE).read_text())
        for name, plain in _PLAIN.items():
            if said.get(name, plain[0]) not in plain:
                raise UnsupportedModel(f"The adapter has {name} = {said[name]!r}, which is not supported: plain LoRA is.")
        rank = math.sqrt(said["r"]) if said.get("use_rslora") else said["r"]
        return float(said["lora_alpha"]) / rank, tuple(said.get("target_parameters") or ())
    except FileNotFoundError as error:
        raise BrokenModel(f"{folder.name} is not a PEFT folder: it has no {CONFIG_FILE}.") from error
    except UnsupportedModel:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise BrokenModel(f"The {CONFIG_FILE} of {folder.name} does not describe an adapter: {error!r}.") from error


def _read_pairs(folder: Path) -> dict[str, Pair]:
    """A and B by module. UnsupportedModel for whatever else there is."""
    try:
        tensors = {name.removeprefix(_PREFIX): tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise BrokenModel(f"The {WEIGHTS_FILE} of {folder.name} is missing or damaged: {error}.") from error
    pairs: dict[str, Pair] = {}
    for name in [n for n in tensors if n.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        b = tensors.pop(f"{module}.lora_B.weight", None)
        if b is None:
            raise BrokenModel(f"The adapter has no {module}.lora_B.weight.")
        pairs[module] = tensors.pop(name), b
    if tensors:
        raise UnsupportedModel(f"The adapter holds {sorted(tensors)[0]}, which is not supported: plain LoRA is.")
    return pairs


def _difference(entry: Entry, pairs: dict[str, Pair], targets: tuple[str, ...]) -> tuple[Tensor, set[str]] | None:
    """B A as one tensor of ours, and the modules that it came from; None where this one is not adapted."""
    if ".experts." in entry.ours and len(entry.shape) == 3:  # not the biases
        where, stack = _stack_of(entry)
        both = all(any(t.rsplit(".", 1)[-1] == s and "shared" not in t for t in targets) for s in _STACKS)
        module = f"{where}.base_layer" if both and stack == _STACKS[0] else where
        mine = any(t.rsplit(".", 1)[-1] == stack for t in targets)
        if mine and module in pairs:
            a, b = pairs[module]
            experts = entry.shape[0]
            outputs = b.view(b.shape[0], -1, experts).permute(2, 0, 1)
            return a.view(experts, -1, a.shape[1]).mT @ _our_outputs(entry, outputs).mT, {module}
    parts = tuple(part for part in entry.parts if part.theirs.removesuffix(".weight") in pairs)
    if not parts:
        return None

    def read(name: str) -> Tensor:
        a, b = pairs[name.removesuffix(".weight")]
        return b @ a

    return assemble(replace(entry, parts=parts), read, torch.zeros(entry.shape)), {part.theirs.removesuffix(".weight") for part in parts}


# -- what a layout says of outputs


def _entries(config: ModelConfig) -> Iterator[Entry]:
    layout = layout_of(config)
    return (entry for entry in layout.entries(config, layout.describe(config)) if isinstance(entry, Entry))


def _stack_of(entry: Entry) -> tuple[str, str]:
    """The module of transformers that holds the experts, and the parameter's name in it."""
    return f"model.layers.{entry.ours.split('.')[1]}.mlp.experts", _STACKS[0] if entry.ours.endswith("gate_up") else _STACKS[1]


def _narrow(entry: Entry, rank: int, inputs_last: bool) -> Entry:
    """The same entry of a matrix with `rank` inputs."""
    shape = (*entry.shape[:-1], rank) if inputs_last else (*entry.shape[:-2], rank, entry.shape[-1])
    return Entry(entry.ours, shape, tuple(p if p.view is None else replace(p, view=(*p.view[:-1], rank)) for p in entry.parts))


def _apart(entry: Entry, b: Tensor) -> Tensors:
    """B (outputs, rank) as those of their matrices, each (outputs, rank)."""
    inputs_last = entry.ours.endswith(".weight")
    return take_apart(_narrow(entry, b.shape[-1], inputs_last), b if inputs_last else b.mT)


def _their_outputs(entry: Entry, b: Tensor) -> Tensor:
    """B of stacked experts, (E, outputs, rank), in the order of transformers' outputs: ours, but where the file's are interleaved (gpt-oss)."""
    if entry.parts[0].turned:
        return b
    (theirs,) = take_apart(_narrow(entry, b.shape[-1], inputs_last=False), b.mT).values()
    return theirs.mT


def _our_outputs(entry: Entry, b: Tensor) -> Tensor:
    """The way back of `_their_outputs`."""
    if entry.parts[0].turned:
        return b
    narrow = _narrow(entry, b.shape[-1], inputs_last=False)
    return assemble(narrow, lambda _: b.mT, torch.empty(narrow.shape)).mT
