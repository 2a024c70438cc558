"""The shape of a student: a preset, or the teacher's made smaller until it has at most a fifth of the parameters; and with what it begins."""

from collections.abc import Sequence
from dataclasses import fields

import torch

from workers.compression.inheritance import inherit
from workers.moe import PRESETS, Decoder, ModelConfig, count_parameters
from workers.moe.families import OPTIONAL
from workers.protocol import JobError
from workers.training import Example, pack

# A student need not have what its teacher's family is peculiar for: all methods then apply to it.
_PLAIN = {f.name: f.default for f in fields(ModelConfig) if f.name in OPTIONAL}

SEEN, SEEN_AT_ONCE = 512, 64  # examples by which it is decided what of the teacher to take over
MOST_PARAMETERS = 0.2  # of the teacher's, for a shape derived from it

# Tried in this order, each a share of the teacher's: width, layers, experts, an expert's width next to the model's. Width goes first, since it
# counts twice, and since a small model's largest part is its vocabulary; experts stay as many, since they cost a token nothing; layers last, since
# a model of one layer cannot look up what it read (induction heads take two: Olsson et al. 2022).
_SHARES = (
    (1.0, 1.0, 0.5, 1.0), (0.75, 1.0, 0.5, 1.0), (0.5, 1.0, 1.0, 1.0), (0.5, 0.67, 1.0, 0.75), (0.5, 0.67, 0.5, 1.0), (0.38, 0.67, 1.0, 1.33),
    (0.38, 0.67, 0.5, 1.0), (0.38, 0.67, 0.25, 1.0), (0.25, 0.67, 0.5, 1.0), (0.25, 0.67, 0.25, 1.0), (0.25, 0.5, 0.25, 1.0),
)  # fmt: skip


def student_config(teacher: ModelConfig, preset: str | None) -> ModelConfig:
    """JobError for an unknown preset, and for one that is no smaller than the teacher. The vocabulary is the teacher's: they share a tokenizer."""
    if preset is None:
        return _derive(teacher)
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


def _derive(teacher: ModelConfig) -> ModelConfig:
    """The largest of the shares above that is small enough."""
    limit = MOST_PARAMETERS * count_parameters(teacher)[0]
    candidates = [_shrink(teacher, *shares) for shares in _SHARES]
    fitting = [config for config in candidates if count_parameters(config)[0] <= limit]
    if not fitting:
        smallest = min(count_parameters(config)[0] for config in candidates)
        raise JobError(
            f"The teacher is too small to have a student of a fifth of its size: the smallest would have {smallest:,} parameters. Quantize it to INT8."
        )
    return max(fitting, key=lambda config: count_parameters(config)[0])


def _shrink(teacher: ModelConfig, width: float, layers: float, experts: float, hidden: float) -> ModelConfig:
    n_layers = max(1, round(teacher.n_layers * layers))
    n_experts = max(2, round(teacher.n_experts * experts)) if teacher.is_moe else 0
    n_heads, n_kv_heads = _heads(teacher, width)
    d_model = n_heads * teacher.head_dim
    scaled = d_model / teacher.d_model * hidden
    sigmoid = teacher.router == "sigmoid"
    return teacher.with_(
        **_PLAIN, n_shared_experts=teacher.n_shared_experts if sigmoid else 0,
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, n_experts=n_experts, top_k=min(teacher.top_k, n_experts),
        d_expert=_multiple(teacher.d_expert * scaled), d_dense=_multiple(teacher.d_dense * scaled),
        first_dense_layers=min(teacher.first_dense_layers, n_layers - 1) if sigmoid else 0, tie_embeddings=True,
    )  # fmt: skip


def _heads(teacher: ModelConfig, width: float) -> tuple[int, int]:
    """As many heads as the width asks for, each key head shared by as many as in the teacher where that divides."""
    heads = max(1, round(teacher.n_heads * width))
    group = teacher.n_heads // teacher.n_kv_heads
    return heads, heads // group if heads % group == 0 else heads


def _multiple(width: float, of: int = 16) -> int:
    return max(of, round(width / of) * of) if width else 0


def new_student(teacher: Decoder, config: ModelConfig, examples: Sequence[Example], seed: int) -> Decoder:
    """With what it can take over from its teacher, seen by some of the examples; the rest is random."""
    student = Decoder(config)
    student.initialise(torch.Generator().manual_seed(seed))
    spread = examples[:: max(1, len(examples) // SEEN)][:SEEN]  # over the file: neighbours are of one entry
    inherit(teacher, student, [pack(spread[start : start + SEEN_AT_ONCE]) for start in range(0, len(spread), SEEN_AT_ONCE)])
    return student
