"""The shape of a student: a preset, or the teacher's made smaller and quicker by as much as is wanted; and with what it begins."""

from collections.abc import Sequence

import torch

from workers.compression.inheritance import inherit
from workers.compression.spec import STUDENT_PARAMETERS, STUDENT_SPEED
from workers.compression.student_shapes import shapes_of, too_small
from workers.moe import PRESETS, Decoder, ModelConfig, count_parameters
from workers.protocol import JobError
from workers.training import Example, pack

SEEN, SEEN_AT_ONCE = 512, 64  # examples by which it is decided what of the teacher to take over

# What a layer costs a token beside its matrices (norms, routing, attention to the keys), in parameters that could be multiplied instead: fitted to
# twelve shapes next to `nano`. At 32 answers at a time, where students gain least, `cost` tells their speed within a tenth; of those that are wider
# than half of their teacher it tells up to a fifth more.
LAYER_WORK = 50_000
TOLERANCE = 0.1


def student_config(teacher: ModelConfig, preset: str | None, *, parameters: float = STUDENT_PARAMETERS, speed: float = STUDENT_SPEED) -> ModelConfig:
    """A preset's, or one derived from the teacher: with at most that share of its parameters, and so many times its speed where that can be.

    The vocabulary is the teacher's: they share a tokenizer. JobError for an unknown preset, for one that is no smaller than the teacher, and
    where no derived one is as small.
    """
    if preset is None:
        return _derive(teacher, parameters, speed)
    if preset not in PRESETS:
        raise JobError(f"There is no preset {preset!r}; there are {', '.join(PRESETS)}. Leave the student out to have one derived from the teacher.")
    config = PRESETS[preset].with_(
        vocab_size=teacher.vocab_size, max_seq_len=teacher.max_seq_len, image_size=teacher.image_size, patch_size=teacher.patch_size,
        image_stem=teacher.image_stem,
    )  # fmt: skip
    (size, _), (limit, _) = count_parameters(config), count_parameters(teacher)
    if size >= limit:
        raise JobError(
            f"A student of the preset {preset} has {size:,} parameters and would not be smaller than its teacher with {limit:,}. "
            "Choose a smaller preset, or leave it out to have one derived from the teacher."
        )
    return config


def _derive(teacher: ModelConfig, share: float, speed: float) -> ModelConfig:
    """The largest that is small and quick enough; where none is as quick, the quickest."""
    costs = {config: cost(config) for config in set(shapes_of(teacher))}
    size, work = cost(teacher)
    fitting = [config for config, (parameters, _) in costs.items() if parameters <= share * size]
    if not fitting:
        raise JobError(too_small(share, min(costs.values())[0]))
    quick = [config for config in fitting if costs[config][1] <= work * (1 - TOLERANCE) / speed]
    if not quick:
        return min(fitting, key=lambda config: costs[config][::-1])
    return max(quick, key=lambda config: (costs[config][0], -costs[config][1]))


def cost(config: ModelConfig) -> tuple[int, int]:
    """Parameters, and the work of a token that is decoded, in parameters that it is multiplied by: the speeds of models are about as these.

    Memory is not counted apart: at one answer a step reads what it multiplies by, and at many it reads all experts, of which a student has fewer.
    """
    parameters, active = count_parameters(config)
    if config.image_size:  # pictures are read, not decoded
        _, active = count_parameters(config.with_(image_size=0))
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.d_model
    return parameters, active - looked_up + LAYER_WORK * config.n_layers


def new_student(teacher: Decoder, config: ModelConfig, examples: Sequence[Example], seed: int) -> Decoder:
    """With what it can take over from its teacher, seen by some of the examples; the rest is random."""
    student = Decoder(config)
    student.initialise(torch.Generator().manual_seed(seed))
    spread = examples[:: max(1, len(examples) // SEEN)][:SEEN]  # over the file: neighbours are of one entry
    inherit(teacher, student, [pack(spread[start : start + SEEN_AT_ONCE]) for start in range(0, len(spread), SEEN_AT_ONCE)])
    return student
