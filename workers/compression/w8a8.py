"""How an INT8 folder says what it is: names of storages and tensors, and `quantization_config` of compressed-tensors. Needs no torch."""

from collections.abc import Mapping
from typing import Any, Protocol

FORMAT = "int8"
MIXED = "mixed"  # some matrices stay floating point (`sensitivity`): read like the other, computed in FP32
SCALE = "_scale"
EMBEDDING = "model.embed_tokens.weight"


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def quantization_config(stored: Mapping[str, Shaped], *, tied: bool) -> dict[str, Any]:
    """As compressed-tensors wants it. `tied`: the output matrix is the embedding, and no tensor of its own."""
    rounded = {"num_bits": 8, "type": "int", "symmetric": True}
    weights = rounded | {"strategy": "channel", "dynamic": False}
    activations = rounded | {"strategy": "token", "dynamic": True}
    whole = [
        name.removesuffix(".weight")
        for name, tensor in stored.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and name + SCALE not in stored
    ]
    group: dict[str, Any] = {"weights": weights, "output_activations": None, "format": "int-quantized"}
    groups = {"group_0": group | {"targets": ["Linear"], "input_activations": activations}}
    if f"{EMBEDDING}{SCALE}" in stored:  # rows are looked up, nothing is multiplied; vLLM opens no model with such a group
        groups["group_1"] = group | {"targets": ["Embedding"], "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*whole, *(["lm_head"] if tied else [])],
        "kv_cache_scheme": None,
    }
