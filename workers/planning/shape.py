"""The shape of a model, as far as its memory and its speed depend on it."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    name: str
    total_parameters: int
    active_parameters: int  # of those, how many one token uses
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_expert: int  # hidden width of one expert, or of the one network of a dense layer
    n_experts: int  # 0: every layer is dense
    top_k: int
    max_seq_len: int
    estimated: bool = False  # from a parameter count alone

    @property
    def expert_parameters(self) -> int:
        """Of all experts of all layers; the rest is read for every token."""
        return 3 * self.d_model * self.d_expert * self.n_experts * self.n_layers

    @property
    def attention_parameters(self) -> int:
        """Of all layers: queries, keys and values, and what brings the heads together."""
        return self.n_layers * self.d_model * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)

    @property
    def matrix_parameters(self) -> int:
        """Matrices between hidden states: attention and feed-forward. Muon keeps one momentum for each of their entries, AdamW two for the rest."""
        feed_forward = self.expert_parameters or 3 * self.d_model * self.d_expert * self.n_layers
        return min(self.total_parameters, self.attention_parameters + feed_forward)

    @property
    def layer_parameters(self) -> float:
        """Of one layer; small vectors and the router included."""
        per_layer = self.matrix_parameters / self.n_layers + self.n_experts * (self.d_model + 1) + 2 * self.d_model
        return min(self.total_parameters / self.n_layers, per_layer)

    @property
    def largest_matrices(self) -> int:
        """Entries of the largest parameter between hidden states: the stacked gate and up matrices of one layer's experts."""
        return 2 * self.d_model * self.d_expert * max(1, self.n_experts)

    def spread(self, ranks: int) -> "Shape":
        """What one rank holds where each layer's experts are spread over `ranks`."""
        if ranks == 1 or not self.n_experts:
            return self
        elsewhere = self.expert_parameters * (ranks - 1) // ranks
        return replace(self, total_parameters=self.total_parameters - elsewhere, n_experts=self.n_experts // ranks)

    def adapter_parameters(self, rank: int) -> int:
        """Two thin matrices of `rank` beside each matrix between hidden states (LoRA, Hu et al. 2021 §4.1)."""
        d, f, heads = self.d_model, self.d_expert, self.n_heads * self.head_dim
        attention = (d + heads + 2 * self.n_kv_heads * self.head_dim) + (heads + d)
        feed_forward = max(1, self.n_experts) * ((d + 2 * f) + (f + d))
        return rank * self.n_layers * (attention + feed_forward)
