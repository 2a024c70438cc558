"""The shapes that are tried for a student, smaller than its teacher's in all combinations. Light: the web process imports it, to refuse before
anything is queued."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import product

from workers.moe.config import ModelConfig
from workers.moe.families import OPTIONAL

# A student need not have what its teacher's family is peculiar for: all methods then apply to it.
_PLAIN = {f.name: f.default for f in fields(ModelConfig) if f.name in OPTIONAL}

# Shares of the teacher's. An expert's width is next to the model's own. At least two layers stay where there are two, since a model of one layer
# cannot look up what it read (induction heads take two: Olsson et al. 2022).
WIDTHS, LAYERS, EXPERTS, HIDDEN = (1.0, 0.75, 0.5, 0.375, 0.25), (1.0, 0.67, 0.5), (1.0, 0.5, 0.25), (1.33, 1.0, 0.75)
FEWEST_LAYERS = 2


def shapes_of(teacher: ModelConfig) -> Iterator[ModelConfig]:
    """Some of them more than once."""
    for shares in product(WIDTHS, LAYERS, EXPERTS, HIDDEN):
        yield _shrink(teacher, *shares)


def fewest_parameters(teacher: ModelConfig) -> int:
    """Of the smallest of those, its image front end not counted."""
    return min(_plain_parameters(config) for config in shapes_of(teacher))


def too_small(share: float, fewest: int) -> str:
    """Why a teacher has no student of that share of its parameters."""
    told = f"{100 * share:.{0 if share >= 0.01 else 2}f} %"
    return f"The teacher is too small to have a student of {told} of its size: the smallest would have {fewest:,} parameters. Quantize it to INT8."


def _plain_parameters(c: ModelConfig) -> int:
    """Of a plain decoder with tied embeddings, which each of those shapes is."""
    attention = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads)
    dense = 3 * c.d_model * c.d_dense
    router = c.n_experts * (c.d_model + (c.router == "softmax"))  # the sigmoid one's bias is moved by load, not learnt
    routed = router + 3 * c.d_model * c.d_expert * (c.n_experts + c.n_shared_experts)
    layers = c.n_layers * (attention + 2 * c.d_model) + c.dense_layers * dense + (c.n_layers - c.dense_layers) * routed
    return c.vocab_size * c.d_model + layers + c.d_model


def _shrink(teacher: ModelConfig, width: float, layers: float, experts: float, hidden: float) -> ModelConfig:
    n_layers = max(min(FEWEST_LAYERS, teacher.n_layers), round(teacher.n_layers * layers))
    n_experts = max(min(2, teacher.n_experts), round(teacher.n_experts * experts))
    n_kv_heads = max(1, round(teacher.n_kv_heads * width))
    d_model = _multiple(teacher.d_model * width)
    scaled = d_model / teacher.d_model * hidden
    sigmoid = teacher.router == "sigmoid"
    return teacher.with_(
        **_PLAIN, n_shared_experts=teacher.n_shared_experts if sigmoid else 0, d_model=d_model, n_layers=n_layers,
        n_heads=n_kv_heads * (teacher.n_heads // teacher.n_kv_heads), n_kv_heads=n_kv_heads,  # a key head is shared by as many as in the teacher
        n_experts=n_experts, top_k=min(teacher.top_k, n_experts), d_expert=_multiple(teacher.d_expert * scaled),
        d_dense=_multiple(teacher.d_dense * scaled), first_dense_layers=min(teacher.first_dense_layers, n_layers - 1) if sigmoid else 0,
        tie_embeddings=True,
    )  # fmt: skip


def _multiple(width: float, of: int = 16) -> int:
    return max(of, round(width / of) * of) if width else 0
