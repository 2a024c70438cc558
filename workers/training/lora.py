"""Low-rank adapters (LoRA, Hu et al. 2021): the parent's matrices stay as they are, and a product of two thin ones is learnt beside each.

    W' = W + (alpha / rank) · B A          A: (…, rank, inputs), random; B: (…, outputs, rank), zero, so that training begins at the parent

They are set in from outside, as parametrizations of the model's own parameters: whatever reads a weight sees W', so no module needs
to know of adapters, and stacked experts (E, inputs, outputs) have a pair each. W' is made anew in each forward: for rank 8 a few
percent of the product's cost, and one copy of an adapted matrix at a time where blocks are recomputed.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from workers.training.parts import whole
from workers.training.spec import LoraSpec

FOLDER = "adapter"  # not beside the weights: transformers would apply the adapter to them, in which it is merged already
_MARK = ".parametrizations."


class LowRank(nn.Module):
    """One matrix's adapter, or one for each of a stack. `weight`: (…, outputs, inputs) as nn.Linear has it, else (…, inputs, outputs)."""

    scale: Tensor

    def __init__(self, weight: Tensor, lora: LoraSpec, inputs_last: bool, generator: torch.Generator):
        super().__init__()
        *stack, rows, columns = weight.shape
        inputs, outputs = (columns, rows) if inputs_last else (rows, columns)
        self.inputs_last = inputs_last
        bound = 1 / math.sqrt(inputs)  # Kaiming's uniform with a = √5, as PEFT begins
        start = torch.empty(*stack, lora.rank, inputs).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(*stack, outputs, lora.rank, device=weight.device))
        self.register_buffer("scale", torch.tensor(lora.alpha / lora.rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.difference(self.scale, self.lora_A, self.lora_B)

    def difference(self, scale: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """(alpha / rank) · B A, laid out as the weight is."""
        return scale * (b @ a if self.inputs_last else a.mT @ b.mT)


def adapt(model: nn.Module, lora: LoraSpec, seed: int) -> None:
    """Freeze all of the model and give the matrices of `lora.targets` their adapters, in place. The same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name, module, attribute in list(_matrices(model)):
        if any(part in name for target in lora.targets for part in _PARTS[target]) and ".router." not in name:
            inputs_last = isinstance(module, nn.Linear)
            parametrize.register_parametrization(module, attribute, LowRank(getattr(module, attribute), lora, inputs_last, generator))
    if lora.train_router:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or ".router." in name)


# Shared experts and dense layers are the same kind of network as an expert.
_PARTS = {"attention": (".attention.",), "experts": (".feed_forward.",)}


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Full name, module and attribute of each matrix; a stack of vectors (the experts' biases) is none."""
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and "bias" not in attribute:
                yield f"{path}.{attribute}", module, attribute


def adapters(model: nn.Module) -> dict[str, LowRank]:
    """By the full name of the parameter that each adapts."""
    return {path.rsplit(".", 1)[0].replace(_MARK, "."): module for path, module in model.named_modules() if isinstance(module, LowRank)}


def merged(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of `model`, gathered from all ranks, as a model without adapters has it: W' under W's name. Others come back as they are."""
    plain = dict(state)
    for name, adapter in adapters(model).items():
        owner, attribute = name.rsplit(".", 1)
        prefix = f"{owner}{_MARK}{attribute}"
        weight = plain.pop(f"{prefix}.original")
        scale, a, b = (plain.pop(f"{prefix}.0.{part}") for part in ("scale", "lora_A", "lora_B"))
        plain[name] = weight + adapter.difference(scale, a, b)
    return plain


def adapter_pairs(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each adapted parameter, by its name, on the CPU. Every rank must call it."""

    def gathered(tensor: Tensor) -> Tensor:
        return whole(tensor).detach().cpu()

    return {name: (gathered(adapter.lora_A), gathered(adapter.lora_B)) for name, adapter in adapters(model).items()}
