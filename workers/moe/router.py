"""Which experts see which tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.moe.config import ModelConfig


class Router(nn.Module):
    """`softmax(W x + b)` with the k largest, their weights summing to 1 (Switch Transformer §2.2, Mixtral §2.1).

    With `router="sigmoid"`, scores are sigmoids and `b` moves the selection only, pushed against the load after every step
    (DeepSeek-V3 §2.1.2), while the weights come from the unbiased scores. `weight`: (E, d_model), `bias`: (E,), FP32; zero and not
    learnt where `router_bias` is off. With `router_groups`, only experts of the best groups are chosen, a group being as good as its
    best two experts together. `norm_top_k` off leaves the weights as the scores are; `routed_scaling` multiplies them.

    After a forward in training: `aux_loss` and `z_loss` (scalars, to be added to the loss) and `load` ((E,) int64, the tokens
    each expert was given). In evaluation, `load` is kept where `keep_load` is set. Where `keep_choices` is set, `ids` and the probabilities
    `shares`, (tokens, E), of the last forward in training stay too.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.top_k
        self.n_experts = config.n_experts
        self.sigmoid = config.router == "sigmoid"
        self.weight = nn.Parameter(torch.empty(config.n_experts, config.d_model))
        self.groups, self.top_groups = config.router_groups, config.router_top_groups
        self.normalise, self.scaling = config.norm_top_k, config.routed_scaling
        if self.sigmoid or not config.router_bias:
            self.register_buffer("bias", torch.zeros(config.n_experts))
        else:
            self.bias = nn.Parameter(torch.zeros(config.n_experts))
        self.keep_load = self.keep_choices = False
        self.aux_loss: Tensor | None = None
        self.z_loss: Tensor | None = None
        self.load: Tensor | None = None
        self.ids: Tensor | None = None
        self.shares: Tensor | None = None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`x`: (tokens, d_model) → expert ids (tokens, k) int64 and weights (tokens, k) float32, which sum to 1 over k by default.

        `valid`: (tokens,) bool; the ids of other tokens (padding) are n_experts, and they count in neither load nor losses.
        """
        with torch.autocast(x.device.type, enabled=False):
            # In FP32 whatever the rest is in: rounding would flip the order of near-equal experts.
            logits = F.linear(x.float(), self.weight.float(), None if self.sigmoid else self.bias.float())
            scores = logits.sigmoid() if self.sigmoid else logits.softmax(-1)  # tokens, E
            ids = self._choose(scores + self.bias if self.sigmoid else scores)
            weights = scores.gather(-1, ids)
            if self.normalise:
                weights = weights / weights.sum(-1, keepdim=True)
            if self.scaling != 1.0:
                weights = weights * self.scaling
            if valid is not None:
                ids = ids.masked_fill(~valid.unsqueeze(1), self.n_experts)
            if self.training or self.keep_load:
                self.load = torch.bincount(ids.reshape(-1), minlength=self.n_experts)[: self.n_experts]
            if self.training:
                self._keep_losses(logits, scores, valid)
                if self.keep_choices:
                    self.ids, self.shares = ids, self._probabilities(scores)
        return ids, weights

    def _choose(self, scores: Tensor) -> Tensor:
        """The ids of the k best experts. `scores`: (tokens, E) → (tokens, k)."""
        if self.groups > 1:
            grouped = scores.unflatten(-1, (self.groups, -1))  # tokens, groups, E / groups
            best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1).topk(self.top_groups, dim=-1).indices
            chosen = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, best, True)
            scores = grouped.masked_fill(~chosen.unsqueeze(-1), -torch.inf).flatten(1)
        return scores.topk(self.top_k, dim=-1).indices

    def _keep_losses(self, logits: Tensor, scores: Tensor, valid: Tensor | None) -> None:
        """Balance loss E · Σ f_e p_e (Switch Transformer eq. 4), 1 when even; z-loss (ST-MoE §3.1)."""
        assert self.load is not None
        counted = torch.ones(len(logits), device=logits.device) if valid is None else valid.float()
        counted = counted / counted.sum()  # tokens; as a product with it, a mean over the valid tokens
        share = self.load / self.load.sum()
        mean = counted @ self._probabilities(scores)
        self.aux_loss = self.n_experts * (share * mean).sum()
        self.z_loss = counted @ logits.logsumexp(-1).square()

    def _probabilities(self, scores: Tensor) -> Tensor:
        return scores / scores.sum(-1, keepdim=True) if self.sigmoid else scores

    @torch.no_grad()
    def move_bias(self, load: Tensor, rate: float) -> None:
        """Push the selection bias of overloaded experts down and of idle ones up. `load`: (E,) over all ranks."""
        self.bias.add_(rate * torch.sign(load.float().mean() - load.float()))
