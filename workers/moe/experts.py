"""The feed-forward networks: the experts of one layer as stacked matrices, and the dense network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.moe.config import ModelConfig
from workers.moe.grouped import Combine, Dispatch, Places, grouped_product

# oneDNN, which does BF16 products on CPU, compiles each anew for a number of rows that it has not met: three times the cost of the
# products themselves. So each expert's rows are filled up to a multiple, and few numbers occur.
ROWS_STEP = 16


def rows_step(x: Tensor) -> int:
    """The multiple to which each expert's rows are filled up, for inputs like `x` under the autocast that is on."""
    return ROWS_STEP if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") else 1


def gated(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`. `gate_up`: (rows, 2 · d_hidden), gate first → (rows, d_hidden). SwiGLU, Shazeer 2020."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gated_within(gate_up: Tensor, alpha: float, limit: float, offset: float) -> Tensor:
    """`gated` with gpt-oss's peculiarities: gate · sigmoid(alpha · gate) · (up + offset), both cut at `limit` (0: not)."""
    gate, up = gate_up.chunk(2, dim=-1)
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * alpha) * (up + offset)


class DenseNetwork(nn.Module):
    """One SwiGLU network. `gate_up`: (d_model, 2 · d_hidden), gate first; `down`: (d_hidden, d_model)."""

    def __init__(self, d_model: int, d_hidden: int):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(d_model, 2 * d_hidden))
        self.down = nn.Parameter(torch.empty(d_hidden, d_model))

    def forward(self, x: Tensor) -> Tensor:
        return gated(x @ self.gate_up) @ self.down


class Experts(nn.Module):
    """SwiGLU experts. `gate_up`: (E, d_model, 2 · d_expert), gate first; `down`: (E, d_expert, d_model).

    Where they have biases: `gate_up_bias`: (E, 2 · d_expert), `down_bias`: (E, d_model).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_experts = config.n_experts
        self.gate_up = nn.Parameter(torch.empty(config.n_experts, config.d_model, 2 * config.d_expert))
        self.down = nn.Parameter(torch.empty(config.n_experts, config.d_expert, config.d_model))
        self.gate_up_bias = self.down_bias = None
        if config.expert_bias:
            self.gate_up_bias = nn.Parameter(torch.zeros(config.n_experts, 2 * config.d_expert))
            self.down_bias = nn.Parameter(torch.zeros(config.n_experts, config.d_model))
        self.plain = (config.swiglu_alpha, config.swiglu_limit, config.swiglu_offset) == (1.0, 0.0, 0.0)
        self.shape = config.swiglu_alpha, config.swiglu_limit, config.swiglu_offset

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """`x`: (tokens, d_model), `ids` and `weights`: (tokens, k) → (tokens, d_model). No token is dropped.

        Tokens are sorted by expert, so that each expert is one product over its own rows: quicker than a padded `bmm` while the
        load is uneven. A token whose ids are all n_experts (padding) goes to nobody, and comes back as zero.
        """
        places = Places.of(ids, self.n_experts, rows_step(x))
        return Combine.apply(self.answers(Dispatch.apply(x, places), places.counts), weights, places)

    def answers(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Each row's answer from its expert. `rows`: (rows, d_model), sorted by expert; `counts`: of each expert here → (rows, d_model)."""
        hidden = _biased(grouped_product(rows, self.gate_up, counts), self.gate_up_bias, counts)
        hidden = gated(hidden) if self.plain else gated_within(hidden, *self.shape)
        return _biased(grouped_product(hidden, self.down, counts), self.down_bias, counts)


def _biased(rows: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
    """Each expert's rows plus its bias. `rows`: (rows, width), `bias`: (E, width)."""
    if bias is None:
        return rows
    return rows + bias.to(rows.dtype).repeat_interleave(torch.tensor(counts, device=rows.device), dim=0)
