"""The feed-forward networks: the experts of one layer as stacked matrices, and the dense network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.moe.config import ModelConfig


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`down(silu(gate x) * up x)`. `x`: (rows, d_model), `gate_up`: (d_model, 2 · d_hidden) gate first, `down`: (d_hidden, d_model)."""
    gate, up = (x @ gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down


class DenseNetwork(nn.Module):
    """One SwiGLU network. `gate_up`: (d_model, 2 · d_hidden), gate first; `down`: (d_hidden, d_model)."""

    def __init__(self, d_model: int, d_hidden: int):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(d_model, 2 * d_hidden))
        self.down = nn.Parameter(torch.empty(d_hidden, d_model))

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.gate_up, self.down)


class Experts(nn.Module):
    """SwiGLU experts. `gate_up`: (E, d_model, 2 · d_expert), gate first; `down`: (E, d_expert, d_model)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(config.n_experts, config.d_model, 2 * config.d_expert))
        self.down = nn.Parameter(torch.empty(config.n_experts, config.d_expert, config.d_model))

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """`x`: (tokens, d_model), `ids` and `weights`: (tokens, k) → (tokens, d_model). No token is dropped.

        Tokens are sorted by expert, so that each expert is one product over its own rows: quicker than a padded `bmm` while the
        load is uneven. An expert without tokens takes part with zero rows, so that its gradient is zero and not missing: a
        sharded run waits for the gradients of all.
        """
        k = ids.shape[1]
        order = ids.reshape(-1).argsort()  # tokens · k
        counts = torch.bincount(ids.reshape(-1), minlength=self.gate_up.shape[0]).tolist()
        rows = x[order // k].split(counts)
        parts = [swiglu(r, up, down) for r, up, down in zip(rows, self.gate_up.unbind(), self.down.unbind(), strict=True)]
        out = torch.cat(parts) * weights.reshape(-1)[order].unsqueeze(1).to(x.dtype)
        return torch.zeros_like(x, dtype=out.dtype).index_add_(0, order // k, out)
