"""Memory of one rank of a training, part by part, each with its formula. Nothing here imports torch.

Ψ: parameters; Ψm: those of matrices between hidden states; N: ranks; M = R · T: tokens of a forward pass, R rows of T; S: of those,
how many are learnt; V, d, h, H, KV, E, k, f: vocabulary, width, head width, heads, key heads, experts, experts a token, their width. Where experts are spread over P ranks, Ψ is
what one rank holds: all but its part of Ψe, the experts' parameters, has P − 1 others.

A run does not need all of it at once. `peak` names the moment at which it needs most; the parts of the other moments are smaller
together. What autograd keeps is counted tensor by tensor from `workers.moe`; tests hold it to what PyTorch really keeps.
"""

from dataclasses import dataclass, replace
from typing import Literal

from workers.planning.shape import Shape

GiB = 1024**3
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
LONGEST_WRITTEN_OUT = 512  # tokens of a row up to which attention on a CPU keeps its scores (workers.moe.model)

# An allowance, not a measurement: CUDA's context, NCCL's buffers, what the allocator cannot use.
GPU_ALLOWANCE_BYTES = 1.5 * GiB
# Measured on Linux, PyTorch 2.13 for CPU: resident memory of a rank before its first step, beside its weights.
PROCESS_BYTES = 355e6
GROUP_BYTES = 12e6
# oneDNN compiles each half-precision product for the shapes that it meets, and keeps up to 1,024 of them: the more rows an expert has on
# average, the more numbers of rows occur. Measured at 216 rows (290 MB), at 384 and at 432 (490 MB).
KERNEL_BYTES_A_ROW, FEWEST_KERNEL_BYTES, MOST_KERNEL_BYTES = 1.34e6, 290e6, 490e6
# glibc keeps what was freed in holes that are not quite filled again: of all that comes and goes in a step. Blocks beyond 32 MiB
# (M_MMAP_THRESHOLD's most) go back to the system at once.
RETAINED_SHARE = 0.5
LARGEST_KEPT_BLOCK = 32 * 1024**2
PATCH_PIXELS = 64  # of a patch, 8 × 8, as a new model has them (workers.training.spec)
MUON_BYTES = 10  # an entry of the matrices in work: the direction in FP32, and three copies in BF16
MUON_BUNCH = 2**22  # entries that move together (workers.training.muon)

Moment = Literal["backward begins", "backward ends", "optimizer step", "average tried", "whole model gathered", "model written"]


@dataclass(frozen=True)
class Part:
    name: str
    bytes: float
    formula: str


@dataclass(frozen=True)
class Recipe:
    """Bytes a parameter of weights, gradients and optimizer, before they are sharded."""

    name: str
    weights: int
    gradients: int
    optimizer: int  # of AdamW
    weights_from_stage: int = 3

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


# Half-precision weights and gradients; the optimizer keeps FP32 weights, momentum and variance (ZeRO §3.1).
PAPER = Recipe("paper", 2, 2, 12)
# FP32 throughout, products by autocast. FSDP2 shards the weights at rest in stage 2 already.
PORTAL = Recipe("portal", 4, 4, 8, 2)
RECIPES = {recipe.name: recipe for recipe in (PAPER, PORTAL)}


def recipe_of(name: str, precision: str) -> Recipe:
    asked = RECIPES[name]
    return replace(PORTAL, name=asked.name, weights_from_stage=asked.weights_from_stage) if precision == "fp32" else asked


@dataclass(frozen=True)
class Setting:
    """One rank's share of a step. `rows` of `length` tokens are one forward pass, examples packed into them."""

    shape: Shape
    precision: str
    rows: int
    length: int
    stage: int = 0
    ranks: int = 1
    accum_steps: int = 1
    learnt_share: float = 1.0  # of the tokens, those that a loss is taken of
    optimizer: Literal["muon", "adamw"] = "muon"
    checkpointing: bool = False  # activations of a layer are computed again in the backward pass
    lora_rank: int = 0  # adapters of that rank are learnt in place of the matrices
    expert_ranks: int = 1  # over which each layer's experts are spread
    average: bool = False  # of what is learnt, kept beside it
    pairs: int = 0  # of answers, to learn preferences from
    patch_share: float = 0.0  # of the tokens, those that are a part of a picture
    recipe: str = "portal"
    gpu: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def held(self) -> Shape:
        """What one rank has of the model, before ZeRO shards it."""
        return self.shape.spread(self.expert_ranks)

    @property
    def learnt_parameters(self) -> int:
        """Those of one rank that have a gradient and a state in the optimizer."""
        return self.held.adapter_parameters(self.lora_rank) if self.lora_rank else self.held.total_parameters

    @property
    def gathers(self) -> bool:
        """Whether the model must be put together from the ranks, to be tried or written."""
        return self.recipe == "portal" and self.ranks > 1 and (self.stage >= 2 or self.expert_ranks > 1)

    @property
    def half(self) -> bool:
        return self.precision != "fp32"


def total(parts: list[Part]) -> float:
    return sum(part.bytes for part in parts)


def peak(setting: Setting) -> tuple[Moment, list[Part]]:
    """The moment at which one rank needs most, and what it holds then."""
    moments = _moments(setting)
    moment = max(moments, key=lambda name: total(moments[name]))
    return moment, [*moments[moment], *overheads(setting, moments[moment])]


def rank_bytes(setting: Setting) -> float:
    return total(peak(setting)[1])


def _moments(s: Setting) -> dict[Moment, list[Part]]:
    states = model_states(s)
    weights, gradients, optimizer = states
    # DistributedDataParallel keeps its buckets, and accumulation what it has so far; else gradients come as activations go. Devices to
    # buy are planned with all of it at once, as ZeRO's paper does.
    standing = [gradients] if s.gpu or s.accum_steps > 1 or s.ranks > 1 else []
    beside = [*averaged(s), *reference(s)]
    kept, again = [activations(s), *pictures(s)], layer_again(s)
    moments: dict[Moment, list[Part]] = {
        "backward begins": [weights, optimizer, *beside, *standing, *kept, *again, logits(s), *working_copies(s), *gathered(s)],
        "backward ends": [weights, gradients, optimizer, *beside, _one_layer(s), *gathered(s, ending=True)],
        "optimizer step": [weights, gradients, optimizer, *beside, *_optimizer_space(s)],
    }
    buckets = [gradients] if s.ranks > 1 and s.stage < 2 else []
    # While the average is tried, the weights themselves wait beside it.
    tried = [weights, optimizer, *beside, *buckets, *(replace(part, name="weights put aside") for part in averaged(s))]
    whole = [Part("gathered weights", 4 * s.shape.total_parameters, "4 Ψ" + (" of all ranks" if s.expert_ranks > 1 else ""))] if s.gathers else []
    left = _left(s, [*kept, logits(s), *adapted_anew(s)])
    if whole:
        moments["whole model gathered"] = [*tried, *whole, *left]
    elif s.average:
        moments["average tried"] = [*tried, *left]
    if not s.gpu and s.recipe == "portal":
        moments["model written"] = [weights, optimizer, *beside, *buckets, *whole, *merged(s), *written(s), *left]
    return moments


# -- weights, gradients, optimizer


def model_states(s: Setting) -> tuple[Part, Part, Part]:
    """Weights, gradients and optimizer of one rank (ZeRO §5: each over N from the stage that shards it)."""
    recipe, psi = recipe_of(s.recipe, s.precision), s.learnt_parameters
    resting = s.held.total_parameters + (psi if s.lora_rank else 0)
    weights = _sharded("weights", resting, recipe.weights, s, s.stage >= recipe.weights_from_stage)
    gradients = _sharded("gradients", psi, recipe.gradients, s, s.stage >= 2)
    if s.recipe == "portal" and s.optimizer == "muon" and not s.lora_rank:
        matrices = s.held.matrix_parameters
        over, divided = (s.ranks, " / N") if s.stage >= 1 and s.ranks > 1 else (1, "")
        formula = f"(4 Ψm + 8 (Ψ − Ψm)){divided}, Ψm = {matrices:,}"
        return weights, gradients, Part("optimizer", (4 * matrices + 8 * (psi - matrices)) / over, formula)
    return weights, gradients, _sharded("optimizer", psi, recipe.optimizer, s, s.stage >= 1)


def _sharded(name: str, psi: int, each: int, s: Setting, divided: bool) -> Part:
    divided = divided and s.ranks > 1
    return Part(name, each * psi / (s.ranks if divided else 1), f"{each} Ψ" + (" / N" if divided else ""))


def averaged(s: Setting) -> list[Part]:
    """The moving average of what is learnt, in FP32, sharded as the weights are."""
    return [_sharded("average", s.learnt_parameters, 4, s, s.stage >= 2)] if s.average else []


def merged(s: Setting) -> list[Part]:
    """Each matrix with its adapter, for the folder that is written."""
    return [Part("adapted weights", 4 * s.shape.matrix_parameters, "4 Ψm")] if s.lora_rank else []


def adapted_anew(s: Setting) -> list[Part]:
    """Each forward makes matrices with their adapters anew; those under 32 MiB come and go as activations do."""
    if not s.lora_rank or s.half:
        return []
    stacks = s.held.n_layers * s.held.largest_matrices if 4 * s.held.largest_matrices >= LARGEST_KEPT_BLOCK else 0
    return [Part("adapted weights", 4.0 * (s.held.matrix_parameters - stacks), "4 Ψm in blocks under 32 MiB")]


def written(s: Setting) -> list[Part]:
    """Gate and up of the experts, interleaved for the file: beside the model, as far as they are no blocks that find room in what was freed."""
    if not s.shape.n_experts or 4 * s.shape.largest_matrices < LARGEST_KEPT_BLOCK:
        return []
    return [Part("written copies", 4.0 * s.shape.largest_matrices * s.shape.n_layers, "8 E d f B a layer")]


def _left(s: Setting, parts: list[Part]) -> list[Part]:
    """Of what came and went in the steps, what the C library keeps, and blocks beyond its largest find no room in."""
    largest = 4 * s.tokens * max(2 * s.shape.d_expert * max(1, s.shape.top_k), s.shape.vocab_size * s.learnt_share)
    return parts if largest < LARGEST_KEPT_BLOCK <= 4 * s.shape.largest_matrices else []


def reference(s: Setting) -> list[Part]:
    """What preference training keeps of its reference: each answer's log-probability, worked out before the first step. No second model."""
    return [Part("reference", 8.0 * s.pairs, "8 B a pair: log-probabilities, no second model")] if s.pairs else []


def working_copies(s: Setting) -> list[Part]:
    """Autocast's half-precision copies of the matrices, which the backward pass needs too."""
    if s.recipe != "portal":
        return []
    if not s.half:
        return [Part("adapted weights", 4 * s.held.matrix_parameters, "4 Ψm")] if s.lora_rank else []
    head = s.shape.vocab_size * s.shape.d_model
    if s.checkpointing:
        each = s.held.matrix_parameters / s.shape.n_layers
        return [Part("half-precision copies", 2 * (each + head), "2 (Ψm / layers + V d)")]
    return [Part("half-precision copies", 2 * (s.held.matrix_parameters + head), "2 (Ψm + V d)")]


def gathered(s: Setting, *, ending: bool = False) -> list[Part]:
    """Sharded weights that are whole while they are used, and the gradients of a layer before they are spread."""
    if s.stage < recipe_of(s.recipe, s.precision).weights_from_stage or s.ranks == 1:
        return []
    each = 4 if s.recipe == "portal" else BYTES[s.precision]
    layer, psi = s.shape.layer_parameters, s.shape.total_parameters
    outside = psi - layer * s.shape.n_layers
    # The layer in work and the next one, and for each a buffer that is exchanged.
    buffers = Part("gathered layers", each * (4 * layer + outside), f"{each} (4 Ψ of a layer + Ψ outside the layers)")
    if s.stage == 2 and not ending:
        return [Part("gathered weights", each * psi, f"{each} Ψ: once a step"), buffers]
    return [buffers]


def _optimizer_space(s: Setting) -> list[Part]:
    if s.recipe != "portal" or s.optimizer != "muon" or s.lora_rank:
        return []
    sharded = s.stage >= 2 and s.ranks > 1 and s.held.n_experts > 0
    over, divided = (min(s.ranks, s.held.n_experts), " / N") if sharded else (1, "")
    together = max(s.held.largest_matrices / over, min(MUON_BUNCH, s.held.matrix_parameters / over))
    return [Part("optimizer's working space", MUON_BYTES * together, f"{MUON_BYTES} B · max(E · d · 2 f{divided}, 2²²)")]


# -- what autograd keeps


def activations(s: Setting) -> Part:
    """Of all layers; with checkpointing only what goes into each."""
    shape = s.shape
    if s.checkpointing:
        return Part("activations", 4.0 * s.tokens * shape.d_model * shape.n_layers, "M · layers · 4 d B")
    a_layer = layer_bytes(s)
    written = f" + 4 H T + {BYTES[s.precision]} H T" if s.half else " + 4 H T"
    formula = (
        f"M · layers · ({_token_formula(s)}{written if _writes_scores(s) else ''}) B = {s.tokens:,} · {shape.n_layers} · {a_layer / s.tokens:,.0f} B"
    )
    return Part("activations", a_layer * shape.n_layers, formula)


def layer_bytes(s: Setting) -> float:
    """What one layer's backward pass needs again: inputs of both norms, queries, keys, values, attention's weights and output, the
    router's input and scores, and each chosen expert's input, gate and up, their product and its output.
    """
    shape, c = s.shape, BYTES[s.precision]
    d, f = shape.d_model, shape.d_expert
    heads = c * shape.head_dim * (2 * shape.n_heads + 2 * shape.n_kv_heads)
    a_token = 2 * 4 * d + c * d + heads + 8
    if shape.n_experts:
        copies = c * (2 * d + 4 * f) + 4
        a_token += 4 * d + shape.top_k * (copies + 16) + 8 * shape.n_experts + 4
    else:
        a_token += c * (d + 4 * f)
    if _writes_scores(s):
        a_token += shape.n_heads * s.length * (4 + (c if s.half else 0))
    return float(s.tokens * a_token)


def pictures(s: Setting) -> list[Part]:
    """What the front end's gradient needs of each patch: its 3 colours, the 16, 32 and 32 channels of the convolutions at a pixel, a fourth and a
    sixteenth of one, and the last again as it is cut."""
    if not s.patch_share:
        return []
    each = 31 * BYTES[s.precision]
    return [Part("pictures", float(each * PATCH_PIXELS * s.tokens * s.patch_share), f"{each} p² B a patch, p² = {PATCH_PIXELS}")]


def layer_again(s: Setting) -> list[Part]:
    return [_one_layer(s)] if s.checkpointing else []


def _one_layer(s: Setting) -> Part:
    return Part("one layer's activations", layer_bytes(s), f"M · {layer_bytes(s) / s.tokens:,.0f} B")


def _writes_scores(s: Setting) -> bool:
    return not s.gpu and s.length <= LONGEST_WRITTEN_OUT


def _token_formula(s: Setting) -> str:
    c = BYTES[s.precision]
    if s.shape.n_experts:
        return f"12 d + {c} d + {c} h (2 H + 2 KV) + k ({c} (2 d + 4 f) + 20) + 8 E"
    return f"8 d + {2 * c} d + {c} h (2 H + 2 KV) + {4 * c} f"


def logits(s: Setting) -> Part:
    """The log-probabilities in FP32, their gradient, and the gradient of the logits: all at once when the backward pass begins."""
    learnt = s.tokens * s.learnt_share
    head = learnt * s.shape.d_model * (4 + BYTES[s.precision])
    formula = f"S (12 V + {4 + BYTES[s.precision]} d) B, S = {learnt:,.0f}"
    return Part("logits", 12.0 * learnt * s.shape.vocab_size + head, formula)


# -- what is there beside the model


def overheads(s: Setting, parts: list[Part]) -> list[Part]:
    if s.gpu:
        return [Part("allowance", GPU_ALLOWANCE_BYTES, "1.5 GiB")]
    process = PROCESS_BYTES + (GROUP_BYTES if s.ranks > 1 else 0)
    found = [Part("process", process, f"{process / 1e6:.0f} MB")]
    if s.half:
        an_expert = s.tokens * s.shape.top_k / s.shape.n_experts if s.shape.n_experts else 0.0
        kernels = min(MOST_KERNEL_BYTES, max(FEWEST_KERNEL_BYTES, KERNEL_BYTES_A_ROW * an_expert))
        found.append(Part("compiled kernels", kernels, f"1.34 MB · M k / E, {FEWEST_KERNEL_BYTES / 1e6:.0f} to {MOST_KERNEL_BYTES / 1e6:.0f} MB"))
    moving, formula = activations(s).bytes + logits(s).bytes, "activations + logits"
    if anew := adapted_anew(s):
        moving, formula = moving + total(anew), f"{formula} + {anew[0].formula}"
    if s.stage >= 2 and s.ranks > 1:  # weights and gradients, whole, layer by layer
        moving += 8 * _in_small_blocks(s.shape)
        formula += " + 8 Ψ in blocks under 32 MiB"
    kept, said = RETAINED_SHARE * moving, f"{RETAINED_SHARE} ({formula})"
    if s.stage == 3 and s.ranks > 1:  # measured: layers gathered in turn, freed in another order, end up beside each other
        kept, said = kept + 4 * _in_small_blocks(s.shape), f"{said} + 4 Ψ in blocks under 32 MiB"
    found.append(Part("allocator", kept, said))
    return found


def _in_small_blocks(shape: Shape) -> float:
    """Parameters that are no stack too large for the C library to keep."""
    if 4 * shape.largest_matrices <= LARGEST_KEPT_BLOCK:
        return float(shape.total_parameters)
    return float(max(0, shape.total_parameters - shape.n_layers * shape.largest_matrices))


# -- serving


def serving_parts(shape: Shape, *, batch: int, sequence: int, precision: str, gpus: int = 1, gpu: bool = True) -> list[Part]:
    each, kv_each = BYTES[precision], max(2, BYTES[precision])
    n = max(1, gpus)
    over = " / N" if n > 1 else ""
    cache = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * kv_each * batch * sequence
    return [
        Part("weights", each * shape.total_parameters / n, f"{each} Ψ{over}"),
        Part("key-value cache", cache / n, f"2 · layers · KV · h · {kv_each} B · b · s{over}"),
        Part("working space", float(batch * max(4 * shape.vocab_size, 64 * shape.d_model)), "b · max(4 V, 64 d) B"),
        Part("allowance", GPU_ALLOWANCE_BYTES, "1.5 GiB") if gpu else Part("process", PROCESS_BYTES, f"{PROCESS_BYTES / 1e6:.0f} MB"),
    ]
