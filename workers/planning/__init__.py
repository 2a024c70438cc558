"""Planning, before anything is started: memory of a rank, the nearest configuration that fits, speed. Counting only, without torch."""

from workers.planning.fit import Configuration, Planned, nearest, planned
from workers.planning.machine import USABLE_SHARE, free_bytes, machine_bytes
from workers.planning.memory import (
    BYTES,
    PAPER,
    PORTAL,
    RECIPES,
    GiB,
    Moment,
    Part,
    Recipe,
    Setting,
    model_states,
    peak,
    rank_bytes,
    recipe_of,
    serving_parts,
    total,
)  # fmt: skip
from workers.planning.queueing import fewest_groups, waiting_seconds
from workers.planning.rows import Kind, Rows, rows_of
from workers.planning.shape import Shape
from workers.planning.speed import TRAINING_EFFICIENCY, devices_for, tokens_per_second, training_flops_per_token

__all__ = [
    "BYTES", "PAPER", "PORTAL", "RECIPES", "TRAINING_EFFICIENCY", "USABLE_SHARE", "Configuration", "GiB", "Kind", "Moment", "Part", "Planned", "Recipe",
    "Rows", "Setting", "Shape", "devices_for", "fewest_groups", "free_bytes", "machine_bytes", "model_states", "nearest", "peak", "planned", "rank_bytes", "recipe_of", "rows_of",
    "serving_parts", "tokens_per_second", "total", "training_flops_per_token", "waiting_seconds",
]  # fmt: skip
