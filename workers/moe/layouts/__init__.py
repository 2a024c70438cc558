"""Our decoder as architectures that `transformers`, vLLM and SGLang know, exactly, and back.

| stored as     | what it is                                                                                     | module    |
|---------------|------------------------------------------------------------------------------------------------|-----------|
| `gpt_oss`     | softmax router with bias; sinks, sliding layers, biased and clamped experts, all or none        | `softmax` |
| `mixtral`     | softmax router without bias                                                                     | `softmax` |
| `qwen3_moe`   | … and RMSNorm of each head's queries and keys, dense first layers, weights left as they are      | `softmax` |
| `olmoe`       | … and RMSNorm of all heads together, queries, keys and values cut                                | `softmax` |
| `glm4_moe`    | sigmoid router, in groups or not, shared experts, dense first layers, partly rotated heads       | `sigmoid` |
| `deepseek_v3` | … and latent attention                                                                          | `sigmoid` |
| `llama`       | no experts                                                                                      | `dense`   |
| `qwen3`       | … and RMSNorm of each head's queries and keys                                                    | `dense`   |

A layout translates a configuration, and says of which of their tensors each of ours is made (`parts`). `workers.moe.families` says
which of them a configuration is stored as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.moe.config import ModelConfig
from workers.moe.layouts import dense, sigmoid, softmax
from workers.moe.layouts.parts import Entries, Entry, Fixed, Tensors, UnsupportedModel, assemble, require_fixed, take_apart

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LAYOUTS",
    "Entry",
    "Layout",
    "Tensors",
    "UnsupportedModel",
    "export_tensors",
    "import_each",
    "import_tensors",
    "layout_named",
    "layout_of",
    "stored",
]


@dataclass(frozen=True)
class Layout:
    """One Hugging Face architecture. `entries`: of a configuration, and of the config.json that it was read from or is written as."""

    model_type: str
    describe: Callable[[ModelConfig], dict[str, Any]]
    read_config: Callable[[dict[str, Any]], ModelConfig]
    entries: Callable[[ModelConfig, dict[str, Any]], Entries]


LAYOUTS: dict[str, Layout] = {
    layout.model_type: layout
    for layout in (
        Layout("gpt_oss", softmax.describe_gpt_oss, softmax.read_gpt_oss, softmax.gpt_oss_entries),
        Layout("glm4_moe", sigmoid.describe_glm4_moe, sigmoid.read_glm4_moe, sigmoid.glm4_moe_entries),
        Layout("llama", dense.describe_llama, dense.read_llama, dense.dense_entries),
        Layout("deepseek_v3", sigmoid.describe_deepseek_v3, sigmoid.read_deepseek_v3, sigmoid.deepseek_v3_entries),
        Layout("qwen3_moe", softmax.describe_qwen3_moe, softmax.read_qwen3_moe, softmax.softmax_entries),
        Layout("mixtral", softmax.describe_mixtral, softmax.read_mixtral, softmax.mixtral_entries),
        Layout("olmoe", softmax.describe_olmoe, softmax.read_olmoe, softmax.softmax_entries),
        Layout("qwen3", dense.describe_qwen3, dense.read_qwen3, dense.dense_entries),
    )
}


def layout_of(config: ModelConfig) -> Layout:
    return LAYOUTS[config.family]


def layout_named(model_type: str | None) -> Layout:
    if model_type not in LAYOUTS:
        raise UnsupportedModel(f"The architecture {model_type!r} is not supported; these are: {', '.join(LAYOUTS)}.")
    return LAYOUTS[model_type]


def stored(config: ModelConfig, state: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Our state dictionary under the layout's names, one tensor after the other, each contiguous. Tied embeddings come once."""
    import torch

    layout = layout_of(config)
    for entry in layout.entries(config, layout.describe(config)):
        if isinstance(entry, Fixed):
            yield entry.theirs, torch.from_numpy(entry.value.copy()).to(state["norm.weight"].dtype)
        else:
            yield from take_apart(entry, state[entry.ours]).items()


def export_tensors(config: ModelConfig, state: Tensors) -> Tensors:
    """All of `stored` at once."""
    return dict(stored(config, state))


def import_each(
    layout: Layout, config: ModelConfig, described: dict[str, Any], read: Callable[[str], Any], empty: Callable[[Entry], Any]
) -> Iterator[tuple[str, Any]]:
    """Our tensors by name, one after the other, FP32. `read` gives one of the layout's by name. UnsupportedModel where one is missing."""
    for entry in layout.entries(config, described):
        try:
            if isinstance(entry, Fixed):
                require_fixed(entry, read)
            else:
                yield entry.ours, assemble(entry, read, empty(entry))
        except KeyError as missing:
            raise UnsupportedModel(f"The model has no tensor {missing}, which {layout.model_type} must have.") from missing


def import_tensors(layout: Layout, config: ModelConfig, tensors: Tensors, described: dict[str, Any] | None = None) -> Tensors:
    """The layout's tensors, NumPy's or PyTorch's, as our state dictionary. UnsupportedModel where a tensor is missing."""
    numpy = isinstance(next(iter(tensors.values()), None), np.ndarray)

    def empty(entry: Entry) -> Any:
        if numpy:
            return np.empty(entry.shape, np.float32)
        import torch

        return torch.empty(entry.shape)

    state = dict(import_each(layout, config, described or {}, tensors.__getitem__, empty))
    state.setdefault("head.weight", state["embedding.weight"])
    return state
