"""How a plain model and its optimizer are spread over the ranks: ZeRO (Rajbhandari 2020) by PyTorch's own means.

| stage | what each rank keeps its part of | by |
|---|---|---|
| 0 | nothing: all is replicated | DistributedDataParallel |
| 1 | the optimizer's state | … with ZeroRedundancyOptimizer |
| 2 | and the gradients and the parameters at rest, gathered once a step | FSDP2, `reshard_after_forward=False` |
| 3 | and the parameters, gathered for each layer, twice a step | FSDP2, `reshard_after_forward=True` |

In stages 0 and 1 the experts may be spread besides (`workers.training.expert_parallel`): their copies then take the place of the ranks.
Experts that saw no token have gradients of zero (`workers.moe.grouped`), so that no rank waits for one that never comes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workers.moe.model import Decoder
from workers.training.expert_parallel import spread_experts
from workers.training.muon import Muon, muon_groups
from workers.training.parts import share_of, whole
from workers.training.ranks import Ranks
from workers.training.spec import TrainSpec


def parallelize(model: Decoder, spec: TrainSpec, ranks: Ranks) -> nn.Module:
    """The module to call in the loop. `model` must be on the ranks' device, with equal weights on each."""
    if spec.activation_checkpointing:
        recompute_blocks(model.blocks)
    stage = spec.zero_stage
    if ranks.size == 1:
        return model
    if stage <= 1:
        from torch.nn.parallel import DistributedDataParallel

        # What is spread is another on each rank, and its gradients are averaged by other groups.
        spread = spread_experts(model, spec, ranks)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, spread)
        # Buffers are equal by construction: rotary tables, and biases moved by the load of all ranks.
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh  # here, because it takes a second that a run of one rank can do without
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=stage == 3)
    # What lies outside the blocks (embedding, last norm, head) is used first and last: gathered once either way.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # in place
    return model


def make_optimizer(module: nn.Module, spec: TrainSpec, ranks: Ranks) -> torch.optim.Optimizer:
    """Over the parameters as this rank sees them. Matrices decay, norms and biases do not. Each group's `peak_lr` is its own."""
    groups = muon_groups(
        module.named_parameters(), lr=spec.lr, matrix_lr=spec.matrix_lr, weight_decay=spec.weight_decay, matrices=spec.optimizer == "muon"
    )
    if ranks.size == 1 or spec.zero_stage != 1:
        return Muon(groups, lr=spec.lr)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    (shares, spread), here = _by_share(groups), partial(ZeroRedundancyOptimizer, optimizer_class=Muon, lr=spec.lr)
    everywhere = here(shares)
    if not spread:
        return everywhere
    copies = next(share.copies for group in spread for p in group["params"] if (share := share_of(p)))
    return Together([everywhere, here(spread, process_group=copies) if copies is not None else Muon(spread, lr=spec.lr)])


def _by_share(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of what every rank holds, and of the experts that are spread."""
    both: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for group in groups:
        for into, spread in zip(both, (False, True), strict=True):
            if members := [p for p in group["params"] if (share_of(p) is not None) is spread]:
                into.append({**group, "params": members})
    return both


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one, each over groups of its own."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})  # the same dictionaries: rates reach the parts

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def stepping(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Those that hold this rank's state: ZeroRedundancyOptimizer steps one over the rank's share of the parameters."""
    return [getattr(part, "optim", part) for part in getattr(optimizer, "parts", [optimizer])]


def recompute_blocks(blocks: nn.ModuleList) -> None:
    """Keep a block's input only, and compute the rest again in the backward pass (Chen 2016): less memory, a third more products."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def gradients_stay_here(module: nn.Module) -> Iterator[None]:
    """Backward passes inside add to this rank's gradients only; the first one outside sends the sum."""
    wrapped: Any = module
    if hasattr(module, "set_requires_gradient_sync"):  # FSDP2
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)
    elif hasattr(module, "no_sync"):  # DistributedDataParallel
        with wrapped.no_sync():
            yield
    else:
        yield


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of all ranks, on the CPU. Every rank must call it."""
    state = model.state_dict()
    spread = {name: p for name, p in model.named_parameters() if share_of(p) is not None}
    return {name: whole(spread.get(name, tensor)).detach().cpu() for name, tensor in state.items()}
