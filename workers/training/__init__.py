"""Training: the loop, precision, parallelism, checkpoints. `python -m workers.training SPEC.json` is the way in.

Names that need torch are loaded on first use: the web process imports `workers.training.launcher`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.training.batches import Batch, Sampler, pack, sampling_weights
    from workers.training.examples import Example, as_question, encode, read_records, texts_of
    from workers.training.precision import Precision
    from workers.training.schedule import learning_rate, progress_of
    from workers.training.spec import TrainSpec

__all__ = [
    "Batch", "Example", "Precision", "Sampler", "TrainSpec", "as_question", "encode", "learning_rate", "pack", "progress_of", "read_records",
    "sampling_weights", "texts_of",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(("Batch", "Sampler", "pack", "sampling_weights"), "batches"),
    **dict.fromkeys(("Example", "as_question", "encode", "read_records", "texts_of"), "examples"),
    "Precision": "precision",
    **dict.fromkeys(("learning_rate", "progress_of"), "schedule"),
    "TrainSpec": "spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"workers.training.{_HOMES[name]}"), name)
