"""Smaller and faster children of a model: INT8, pruned, distilled, ONNX, and a policy that picks among them.

Importing this is light: the web process reads `applicable`, and an engine that serves INT8 or ONNX needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workers.compression.applicable import applicable

if TYPE_CHECKING:
    from workers.compression.runners import open_runner

__all__ = ["applicable", "open_runner"]


def __getattr__(name: str) -> Any:
    if name != "open_runner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("workers.compression.runners").open_runner
