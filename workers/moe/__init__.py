"""The model: a Mixture-of-Experts decoder, its tokenizer and its folder on disk.

Names that need torch are loaded on first use, so that importing `workers.moe.config` stays light.
"""

from typing import TYPE_CHECKING, Any

from workers.moe.config import PRESETS, ModelConfig, dense_twin

if TYPE_CHECKING:
    from workers.moe.checkpoint import BrokenModel, load_model, load_tokenizer, read_config, register_storage, save_model
    from workers.moe.generation import generate
    from workers.moe.huggingface import UnsupportedModel
    from workers.moe.model import Decoder, KVCache
    from workers.moe.parameters import count_parameters
    from workers.moe.tokenizer import ChatTokenizer

_HOMES = {
    "BrokenModel": "checkpoint", "load_model": "checkpoint", "load_tokenizer": "checkpoint", "read_config": "checkpoint",
    "register_storage": "checkpoint", "save_model": "checkpoint", "generate": "generation", "UnsupportedModel": "huggingface",
    "Decoder": "model", "KVCache": "model", "count_parameters": "parameters", "ChatTokenizer": "tokenizer",
}  # fmt: skip

__all__ = ["PRESETS", "ModelConfig", "dense_twin", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"workers.moe.{_HOMES[name]}"), name)
