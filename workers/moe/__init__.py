"""The model: a Mixture-of-Experts decoder, its tokenizer and its folder on disk.

Names that need torch are loaded on first use, so that importing `workers.moe.config` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workers.moe.config import PRESETS, VISION_FILE, ModelConfig, dense_twin

if TYPE_CHECKING:
    from workers.moe.adapters import add_adapter, save_adapter
    from workers.moe.attention import Seen
    from workers.moe.cache import KVCache, LayerCache
    from workers.moe.checkpoint import (
        BrokenModel,
        describe,
        load_model,
        load_tokenizer,
        read_config,
        register_storage,
        save_model,
        save_tensors,
        vision_of,
    )
    from workers.moe.generation import generate
    from workers.moe.layouts import UnsupportedModel, export_tensors, import_each, import_tensors, layout_named
    from workers.moe.model import Decoder
    from workers.moe.parameters import count_parameters
    from workers.moe.pictures import BadPicture, as_data_url, check_picture, pixels_of, shrunk
    from workers.moe.quantization import quantization_of
    from workers.moe.tokenizer import ChatTokenizer, NoPictures, TemplateRefused, asking

__all__ = [
    "PRESETS", "VISION_FILE", "BadPicture", "BrokenModel", "ChatTokenizer", "Decoder", "KVCache", "LayerCache", "ModelConfig", "NoPictures", "Seen", "TemplateRefused", "UnsupportedModel",
    "add_adapter", "as_data_url", "asking", "check_picture", "count_parameters", "dense_twin", "describe", "export_tensors", "generate", "import_each", "import_tensors", "layout_named", "load_model", "load_tokenizer", "pixels_of", "quantization_of", "read_config",
    "register_storage",
    "save_adapter", "save_model", "save_tensors", "shrunk", "vision_of",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(
        ("BrokenModel", "describe", "load_model", "load_tokenizer", "read_config", "register_storage", "save_model", "save_tensors", "vision_of"),
        "checkpoint",
    ),
    "generate": "generation",
    **dict.fromkeys(("UnsupportedModel", "export_tensors", "import_each", "import_tensors", "layout_named"), "layouts"),
    "Decoder": "model",
    "Seen": "attention",
    "quantization_of": "quantization",
    **dict.fromkeys(("add_adapter", "save_adapter"), "adapters"),
    **dict.fromkeys(("KVCache", "LayerCache"), "cache"),
    "count_parameters": "parameters",
    **dict.fromkeys(("BadPicture", "as_data_url", "check_picture", "pixels_of", "shrunk"), "pictures"),
    **dict.fromkeys(("ChatTokenizer", "NoPictures", "TemplateRefused", "asking"), "tokenizer"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"workers.moe.{_HOMES[name]}"), name)
