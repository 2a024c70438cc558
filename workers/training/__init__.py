"""Training: the loop, precision, parallelism, checkpoints. `python -m workers.training SPEC.json` is the way in.

Names that need torch are loaded on first use: the web process imports `workers.training.launcher`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.training.average import Average
    from workers.training.batches import MOST_TURNS, Batch, Sampler, as_conversations, pack, sampling_weights
    from workers.training.examples import Example, as_question, encode, read_records, texts_of
    from workers.training.muon import Muon, muon_groups
    from workers.training.precision import Precision
    from workers.training.ranks import Ranks
    from workers.training.schedule import learning_rate, progress_of
    from workers.training.spec import TrainSpec
    from workers.training.state import Checkpoints, Progress

__all__ = [
    "MOST_TURNS", "Average", "Batch", "Checkpoints", "Example", "Muon", "Precision", "Progress", "Ranks", "Sampler", "TrainSpec", "as_conversations",
    "as_question", "encode", "learning_rate", "muon_groups", "pack", "progress_of", "read_records", "sampling_weights", "texts_of",
]  # fmt: skip

_HOMES = {
    "Average": "average",
    **dict.fromkeys(("MOST_TURNS", "Batch", "Sampler", "as_conversations", "pack", "sampling_weights"), "batches"),
    **dict.fromkeys(("Example", "as_question", "encode", "read_records", "texts_of"), "examples"),
    **dict.fromkeys(("Muon", "muon_groups"), "muon"),
    "Precision": "precision",
    "Ranks": "ranks",
    **dict.fromkeys(("learning_rate", "progress_of"), "schedule"),
    "TrainSpec": "spec",
    **dict.fromkeys(("Checkpoints", "Progress"), "state"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"workers.training.{_HOMES[name]}"), name)
