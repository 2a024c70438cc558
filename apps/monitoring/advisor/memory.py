"""What the planner's parts of the memory are called and why they are there, in the reader's language."""

from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop

from workers.planning import Part

NAMES = (
    gettext_noop("weights"), gettext_noop("gradients"), gettext_noop("optimizer"), gettext_noop("activations"), gettext_noop("logits"),
    gettext_noop("half-precision copies"), gettext_noop("adapted weights"), gettext_noop("gathered weights"), gettext_noop("gathered layers"), gettext_noop("optimizer's working space"),
    gettext_noop("one layer's activations"), gettext_noop("process"), gettext_noop("compiled kernels"), gettext_noop("allocator"),
    gettext_noop("average"), gettext_noop("weights put aside"), gettext_noop("reference"), gettext_noop("written copies"), gettext_noop("pictures"),
    gettext_noop("allowance"), gettext_noop("key-value cache"), gettext_noop("working space"),
)  # fmt: skip
MOMENTS = {
    "backward begins": gettext_lazy("when the backward pass begins"),
    "backward ends": gettext_lazy("when the backward pass ends"),
    "optimizer step": gettext_lazy("in the optimizer's step"),
    "average tried": gettext_lazy("when the averaged weights are tried"),
    "model written": gettext_lazy("when the model is written"),
    "whole model gathered": gettext_lazy("when the whole model is gathered, to be tried or written"),
}
WHY = {
    "weights": gettext_lazy("the parameters; ZeRO shards them from stage 3 on, FSDP2 at rest from stage 2 on"),
    "gradients": gettext_lazy("sharded from stage 2 on"),
    "optimizer": gettext_lazy("its moments, and master weights where they are kept; sharded from stage 1 on"),
    "activations": gettext_lazy("what the backward pass of each layer needs again: norms' inputs, queries, keys, values, attention, experts' rows"),
    "logits": gettext_lazy("log-probabilities of the learnt tokens over the vocabulary, with two gradients, in FP32"),
    "half-precision copies": gettext_lazy("autocast's copies of the matrices, kept until the backward pass"),
    "adapted weights": gettext_lazy("each matrix with its adapter added, kept until the backward pass"),
    "gathered weights": gettext_lazy("all ranks' parts of the weights, whole while they are used"),
    "gathered layers": gettext_lazy("the layer that is being computed and the next one, whole, with buffers to exchange them"),
    "optimizer's working space": gettext_lazy("Muon makes the largest stack of matrices orthogonal in copies of it"),
    "one layer's activations": gettext_lazy("the layer in work"),
    "process": gettext_lazy("Python with PyTorch imported, the dataset's reader, threads: measured"),
    "compiled kernels": gettext_lazy("what oneDNN compiles for the shapes it meets in half precision: measured"),
    "allocator": gettext_lazy("holes between blocks that the C library keeps: measured as a share"),
    "allowance": gettext_lazy("CUDA's context, communication buffers, fragmentation: assumed, not computed"),
    "key-value cache": gettext_lazy("keys and values of every token of the sequences in the batch"),
    "average": gettext_lazy("a moving average of the weights, published in their place"),
    "weights put aside": gettext_lazy("the weights themselves, while their average is tried"),
    "written copies": gettext_lazy("the experts' matrices as the file has them"),
    "reference": gettext_lazy("what the model said of each answer before it learnt from preferences"),
    "pictures": gettext_lazy("pixels of the patches, which the image front end's gradient needs"),
    "working space": gettext_lazy("the logits of one step, or a layer's vectors"),
}


@dataclass(frozen=True)
class Explained:
    """A part as pages and the API show it; `name` is English, for programs too."""

    name: str
    bytes: float
    formula: str
    why: str


def explained(parts: list[Part]) -> list[Explained]:
    return [Explained(part.name, part.bytes, part.formula, str(WHY[part.name])) for part in parts]


def in_words(parts: list[Part], most: int = 4) -> str:
    """The largest parts in one line."""
    largest = sorted(parts, key=lambda part: -part.bytes)[:most]
    return ", ".join(f"{_(part.name)} {size(part.bytes)}" for part in largest)


def size(count: float) -> str:
    return f"{count / 1e12:,.2f} TB" if count >= 1e12 else f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
