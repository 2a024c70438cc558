"""Experts spread over the ranks (GShard, Lepikhin 2020 §3.1): each of a group holds a part of every layer's, and tokens travel to them.

    world_size 8, expert_parallel_size 4, 64 experts

        group     0 1 2 3 | 4 5 6 7       tokens travel within a group
        experts   0–15 16–31 32–47 48–63 | 0–15 16–31 32–47 48–63
        copies    0 4, 1 5, 2 6, 3 7      gradients of experts are averaged among those that hold the same ones

All else (attention, routers, embedding, shared experts) is on every rank, and its gradients are averaged over all of them. An expert's gradient
holds the tokens of its whole group already, so the sum over the copies, divided by the number of ranks, is the same average.
No rank waits for a token that never comes: all of them exchange, as many rows as there are, none too.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from workers.moe.experts import Experts, rows_step
from workers.moe.grouped import Collect, Combine, Dispatch, Places, working_type
from workers.protocol import JobError
from workers.training.parts import Share, set_share, share_of
from workers.training.ranks import Ranks
from workers.training.spec import TrainSpec


def spread_experts(model: nn.Module, spec: TrainSpec, ranks: Ranks) -> list[str]:
    """Keep this rank's experts only, in place, and let tokens travel. The names of their parameters. JobError where they cannot be dealt evenly."""
    size = spec.expert_parallel_size
    if size == 1:
        return []
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    experts = layers[0].n_experts if layers else 0
    if not experts or experts % size:
        raise JobError(
            f"{experts} experts cannot be spread evenly over expert_parallel_size {size}. Choose a divisor of their number, or 1 for a dense model."
        )
    from torch.distributed.device_mesh import init_device_mesh  # here, because it takes a second that other runs can do without

    mesh = init_device_mesh(ranks.device.type, (ranks.size // size, size), mesh_dim_names=("copies", "experts"))
    each = experts // size
    first = mesh.get_local_rank("experts") * each
    copies = mesh.get_group("copies") if ranks.size > size else None
    share = Share(first, experts, mesh.get_group("experts"), copies, ranks.rank < size)
    spread: set[int] = set()
    for layer in layers:
        for parameter in layer.parameters():  # adapters too: a pair for each expert
            parameter.data = parameter.data[first : first + each].clone()
            set_share(parameter, share)
            spread.add(id(parameter))
        layer.forward = partial(answer_of_all, layer, share.group)  # type: ignore[method-assign]
    return [name for name, parameter in model.named_parameters() if id(parameter) in spread]


def answer_of_all(layer: Experts, group: dist.ProcessGroup, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """`Experts.forward` where `layer` holds a part of the experts, and the ranks of `group` the others. Every one of them must call it.

    Rows are sorted by expert, and so by rank; they arrive by sender and by expert, and are sorted once more.
    """
    ranks, each = dist.get_world_size(group), layer.n_experts // dist.get_world_size(group)
    places = Places.of(ids, layer.n_experts, 1)
    rows = Dispatch.apply(x, places).to(working_type(x))
    leaving = torch.tensor(places.counts, device=x.device)
    arriving = torch.empty_like(leaving)
    dist.all_to_all_single(arriving, leaving, group=group)
    sent, received = leaving.view(ranks, each).sum(1).tolist(), arriving.view(ranks, each).sum(1).tolist()
    guests = Exchange.apply(rows, sent, received, group)
    wanted = torch.arange(each, device=x.device).repeat(ranks).repeat_interleave(arriving)
    # So many times the tokens come to each expert: with steps as much longer, no more lengths occur (and kernels are compiled) than elsewhere.
    step = rows_step(x)
    here = Places.of(wanted.unsqueeze(1), each, step if step == 1 else step * ranks)
    answers = Collect.apply(layer.answers(Dispatch.apply(guests, here), here.counts), here)
    return Combine.apply(Exchange.apply(answers, received, sent, group), weights, places)


class Exchange(Function):
    """Rows to the ranks of a group, `sent` to each, in its order; `received` from each. (Σ sent, width) → (Σ received, width)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way_back = received, sent, group
        return _exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(grad, *ctx.way_back), None, None, None


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    arrived = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived


@torch.no_grad()
def average_expert_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Of those that are spread, when a step's last backward pass has ended: what DistributedDataParallel does for the rest."""
    for parameter in model.parameters():
        share = share_of(parameter)
        if share is not None and parameter.grad is not None:
            parameter.grad.div_(ranks.size)
            if share.copies is not None:
                dist.all_reduce(parameter.grad, group=share.copies)


def gradient_norm(model: nn.Module) -> Tensor:
    """2-norm of all gradients, those of experts that other ranks hold among them."""
    ours: list[Tensor] = []
    spread: list[Tensor] = []
    group = None
    for parameter in model.parameters():
        if parameter.grad is not None:
            share = share_of(parameter)
            group = share.group if share else group
            (spread if share else ours).append(parameter.grad)
    norm = nn.utils.get_total_norm(ours)
    if group is None:
        return norm
    squared = nn.utils.get_total_norm(spread).square()
    dist.all_reduce(squared, group=group)
    return (norm.square() + squared).sqrt()
