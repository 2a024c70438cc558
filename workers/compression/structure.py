"""Whole hidden units and whole experts of a model: what they are worth, and the model without the least of them.

Only this makes a model faster: the matrices themselves become smaller. Zeros among the weights of a matrix that stays as large save bytes,
not time, on any processor without sparse kernels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.compression.applicable import units_left
from workers.moe import Decoder, ModelConfig
from workers.protocol import JobError
from workers.training import Batch

Importance = dict[str, Tensor]  # network's prefix → (…, hidden) of its units, or router's prefix → (experts,)


def networks(model: Decoder) -> dict[str, tuple[Tensor, Tensor]]:
    """Each layer's gate_up and down, by their common name."""
    state = dict(model.named_parameters())
    prefixes = [name.removesuffix(".gate_up") for name in state if name.endswith(".gate_up")]
    return {prefix: (state[f"{prefix}.gate_up"].detach(), state[f"{prefix}.down"].detach()) for prefix in prefixes}


# -- what they are worth


def unit_importance(gate_up: Tensor, down: Tensor) -> Tensor:
    """Mean absolute weight of each hidden unit: its gate and up columns and its down row. `down`: (…, hidden, d_model) → (…, hidden)."""
    gate, up = gate_up.abs().chunk(2, dim=-1)
    total = gate.sum(-2) + up.sum(-2) + down.abs().sum(-1)
    return total / (2 * gate_up.shape[-2] + down.shape[-1])


def by_weight(model: Decoder) -> Importance:
    """Of all units of all networks; an expert is worth its units' mean."""
    return {prefix: unit_importance(*pair) for prefix, pair in networks(model).items()}


@torch.no_grad()
def by_use(model: Decoder, batches: Sequence[Batch]) -> Importance:
    """How much each unit adds to what the layer says, on some batches: the sum over tokens of |activation| · share · ‖its down row‖.

    For a network that sees every token the share is 1. An expert that few tokens are sent to is worth little, and so are all of its units.
    """
    worth = {prefix: torch.zeros(down.shape[:-1]) for prefix, (_, down) in networks(model).items()}
    hooks = [_watch(model, prefix, total) for prefix, total in worth.items()]
    try:
        for batch in batches:
            model(batch.tokens, **batch.inputs | {"select": batch.select[:1]})
    finally:
        for hook in hooks:
            hook.remove()
    return worth


def _watch(model: Decoder, prefix: str, total: Tensor):
    """Add up, in `total`, what each unit of the network adds whenever it runs."""
    network = model.get_submodule(prefix)
    gate_up, down = networks(model)[prefix]
    reach = down.norm(dim=-1)  # …, hidden

    def said(x: Tensor, part: Tensor, rows: Tensor) -> Tensor:
        gate, up = (x @ part).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up).abs() * rows

    def watch(module: torch.nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if len(given) == 1:
            total.add_(said(given[0], gate_up, reach).sum(0))
            return
        x, ids, shares = given
        for expert in range(len(total)):
            token, place = (ids == expert).nonzero(as_tuple=True)
            if len(token):
                total[expert].add_((said(x[token], gate_up[expert], reach[expert]) * shares[token, place].unsqueeze(1)).sum(0))

    return network.register_forward_hook(watch)


# -- the model without them


def units_below(model: Decoder, threshold: float) -> int:
    """How many of an expert's units are below `threshold`, where fewest are: all experts keep the same width."""
    return min(int((worth < threshold).sum(-1).min()) for worth in by_weight(model).values())


def without_units(model: Decoder, sparsity: float, worth: Importance | None = None) -> Decoder:
    """A narrower model: of each network, the least important share of hidden units is gone. Experts keep one width, at least 1."""
    config, worth = model.config, worth or by_weight(model)

    smaller = config.with_(d_expert=units_left(config.d_expert, sparsity), d_dense=units_left(config.d_dense, sparsity))

    def change(state: dict[str, Tensor]) -> None:
        for prefix, (gate_up, down) in networks(model).items():
            width = _width(prefix, smaller)
            kept = worth[prefix].topk(width, dim=-1).indices.sort(dim=-1).values  # …, width
            gate, up = gate_up.chunk(2, dim=-1)
            columns = kept.unsqueeze(-2).expand(*gate.shape[:-1], width)
            state[f"{prefix}.gate_up"] = torch.cat([gate.gather(-1, columns), up.gather(-1, columns)], dim=-1)
            if f"{prefix}.gate_up_bias" in state:
                halves = state[f"{prefix}.gate_up_bias"].chunk(2, dim=-1)
                state[f"{prefix}.gate_up_bias"] = torch.cat([half.gather(-1, kept) for half in halves], dim=-1)
            state[f"{prefix}.down"] = down.gather(-2, kept.unsqueeze(-1).expand(*kept.shape, down.shape[-1]))

    return _rebuilt(model, smaller, change)


def without_experts(model: Decoder, sparsity: float, worth: Importance | None = None) -> Decoder:
    """A model with fewer experts: in each layer the least important share is gone, with the router's rows. At least as many as see a token stay."""
    config, worth = model.config, worth or by_weight(model)
    if config.router_groups > 1:
        raise JobError("This model's experts stand in groups, from which whole experts cannot be taken. Remove neurons instead.")
    smaller = config.with_(n_experts=max(config.top_k, round(config.n_experts * (1 - sparsity))))

    def change(state: dict[str, Tensor]) -> None:
        for prefix in [prefix for prefix in networks(model) if prefix.endswith(".experts")]:
            kept = worth[prefix].mean(-1).topk(smaller.n_experts).indices.sort().values
            router = prefix.removesuffix("experts") + "router"
            for name in [name for name in state if name.startswith((f"{prefix}.", f"{router}."))]:
                state[name] = state[name][kept]

    return _rebuilt(model, smaller, change)


def _rebuilt(model: Decoder, smaller: ModelConfig, change: Callable[[dict[str, Tensor]], None]) -> Decoder:
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    change(state)
    with torch.device("meta"):
        narrow = Decoder(smaller)
    narrow.load_state_dict(state, assign=True)
    if smaller.tie_embeddings:
        narrow.head.weight = narrow.embedding.weight
    narrow.rebuild_tables()
    return narrow.eval()


def _width(prefix: str, config: ModelConfig) -> int:
    if prefix.endswith(".dense"):
        return config.d_dense
    return config.d_expert * (config.n_shared_experts if prefix.endswith(".shared") else 1)
