"""How an INT8 folder says what it is: names of storages and tensors, and `quantization_config` of compressed-tensors. Needs no torch."""

from collections.abc import Mapping
from typing import Any, Protocol

FORMAT = "int8"
MIXED = "mixed"  # some matrices stay floating point (`sensitivity`): read like the other, computed in FP32
SCALE = "_scale"


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
    group = {"weights": weights, "output_activations": None, "format": "int-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": group | {"targets": ["Linear"], "input_activations": activations},
            "group_1": group | {"targets": ["Embedding"], "input_activations": None},  # rows are looked up, nothing is multiplied
        },
        "ignore": [*whole, *(["lm_head"] if tied else [])],
        "kv_cache_scheme": None,
    }
