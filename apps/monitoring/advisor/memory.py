"""Memory of one rank, part by part, each with its formula. Ψ: parameters; N: ranks; b: sequences of one forward pass; s: tokens of one."""

from dataclasses import dataclass, replace

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from apps.monitoring.advisor.shapes import Shape

GiB = 1024**3
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
# An allowance, not a measurement: CUDA's context, NCCL's buffers, what the allocator cannot use.
GPU_ALLOWANCE_BYTES = 1.5 * GiB
# Measured on Linux: what a Python process holds once it has imported PyTorch 2.13 (CPU) and our training.
PROCESS_BYTES = 245e6


@dataclass(frozen=True)
class Part:
    name: str
    bytes: float
    formula: str
    why: str


@dataclass(frozen=True)
class Recipe:
    """Bytes a parameter of weights, gradients and optimizer, before they are sharded."""

    name: str
    weights: int
    gradients: int
    optimizer: int
    why: str
    weights_from_stage: int = 3  # FSDP2 shards the weights at rest in stage 2 already, measured by benchmarks/zero_memory.py

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


PAPER = Recipe(
    "paper", 2, 2, 12, gettext_noop("half-precision weights and gradients; the optimizer keeps FP32 weights, momentum and variance (ZeRO §3.1)")
)
PORTAL = Recipe(
    "portal",
    4,
    4,
    8,
    gettext_noop("FP32 weights and gradients, computed in half precision by autocast; AdamW keeps momentum and variance in FP32"),
    2,
)
FP32 = Recipe("fp32", 4, 4, 8, gettext_noop("everything in FP32"))
RECIPES = {recipe.name: recipe for recipe in (PAPER, PORTAL, FP32)}


def recipe_of(name: str, precision: str) -> Recipe:
    asked = RECIPES[name]
    return replace(FP32, weights_from_stage=asked.weights_from_stage) if precision == "fp32" else asked


def training_parts(shape: Shape, *, recipe: Recipe, stage: int, gpus: int, batch: int, sequence: int, precision: str, gpu: bool = True) -> list[Part]:
    psi, n = shape.total_parameters, max(1, gpus)
    parts = [
        _sharded(
            gettext_noop("weights"),
            psi,
            recipe.weights,
            n,
            stage >= recipe.weights_from_stage,
            _("sharded from stage %(n)s on") % {"n": recipe.weights_from_stage},
        ),
        _sharded(gettext_noop("gradients"), psi, recipe.gradients, n, stage >= 2, _("sharded from stage %(n)s on") % {"n": 2}),
        _sharded(gettext_noop("optimizer"), psi, recipe.optimizer, n, stage >= 1, _("sharded from stage %(n)s on") % {"n": 1}),
        activations(shape, batch=batch, sequence=sequence, precision=precision),
        logits(shape, batch=batch, sequence=sequence, precision=precision),
    ]
    if stage >= recipe.weights_from_stage and n > 1:
        layer = psi / shape.n_layers * BYTES[precision]
        why = _("the layer that is being computed, and the next one, are gathered whole")
        parts.append(Part(gettext_noop("gathered layers"), 2 * layer, f"2 · Ψ / {shape.n_layers} layers · {BYTES[precision]} B", why))
    if gpu:
        parts.append(
            Part(
                gettext_noop("allowance"),
                GPU_ALLOWANCE_BYTES,
                "1.5 GiB",
                _("CUDA's context, communication buffers, fragmentation: assumed, not computed"),
            )
        )
    else:
        parts.append(_process())
    return parts


def _process() -> Part:
    return Part(gettext_noop("process"), PROCESS_BYTES, "245 MB", _("Python with PyTorch imported: measured"))


def _sharded(name: str, psi: int, each: int, n: int, divided: bool, why: str) -> Part:
    return Part(name, each * psi / (n if divided else 1), f"{each} Ψ" + (" / N" if divided else ""), why)


def activations(shape: Shape, *, batch: int, sequence: int, precision: str) -> Part:
    """What the backward pass of a decoder layer needs again, attention computed without storing its s × s scores."""
    each = BYTES[precision]
    heads = 2 * shape.head_dim * (shape.n_heads + shape.n_kv_heads)
    chosen = max(1, shape.top_k)
    a_token = 4 * shape.d_model + heads + chosen * (2 * shape.d_model + 4 * shape.d_expert) + shape.n_experts
    formula = (
        f"b · s · layers · (4 d + 2 h (H + KV) + k (2 d + 4 f) + E) · {each} B = {batch} · {sequence} · {shape.n_layers} · {a_token:,} · {each} B"
    )
    why = _("inputs of both norms, queries, keys, values and attention's output, and each chosen expert's input, gate, up, product and output")
    return Part(gettext_noop("activations"), float(batch * sequence * shape.n_layers * a_token * each), formula, why)


def logits(shape: Shape, *, batch: int, sequence: int, precision: str) -> Part:
    each = BYTES[precision] + 8
    why = _("the logits, once more in FP32 for the loss, and their gradient")
    return Part(gettext_noop("logits"), float(batch * sequence * shape.vocab_size * each), f"b · s · V · ({BYTES[precision]} + 4 + 4) B", why)


def serving_parts(shape: Shape, *, batch: int, sequence: int, precision: str, gpus: int = 1, gpu: bool = True) -> list[Part]:
    each, kv_each = BYTES[precision], max(2, BYTES[precision])
    n = max(1, gpus)
    over = " / N" if n > 1 else ""
    cache = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * kv_each * batch * sequence
    parts = [
        Part("weights", each * shape.total_parameters / n, f"{each} Ψ{over}", _("all experts must be at hand, though a token uses few")),
        Part(
            gettext_noop("key-value cache"),
            cache / n,
            f"2 · layers · KV · h · {kv_each} B · b · s{over}",
            _("keys and values of every token of the sequences in the batch"),
        ),
        Part(
            gettext_noop("working space"),
            float(batch * max(4 * shape.vocab_size, 64 * shape.d_model)),
            "b · max(4 V, 64 d) B",
            _("the logits of one step, or a layer's vectors"),
        ),
    ]
    if gpu:
        parts.append(Part(gettext_noop("allowance"), GPU_ALLOWANCE_BYTES, "1.5 GiB", _("CUDA's context, fragmentation: assumed, not computed")))
    else:
        parts.append(_process())
    return parts


def total(parts: list[Part]) -> float:
    return sum(part.bytes for part in parts)
