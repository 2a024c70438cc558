"""What a model is made of, as data. Importing this needs no torch, so that the web process may."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

RouterKind = Literal["softmax", "sigmoid"]

VISION_FILE = "vision.safetensors"  # of a model folder: the image front end, where there is one


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: RoPE, RMSNorm, grouped-query attention, SwiGLU; in each layer a mixture of experts, or one dense network."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_expert: int  # hidden width of one expert
    n_experts: int  # 0: every layer is dense
    top_k: int
    router: RouterKind = "softmax"
    n_shared_experts: int = 0  # experts that see every token, as one network of n_shared_experts · d_expert
    first_dense_layers: int = 0  # so many layers at the bottom are dense
    d_dense: int = 0  # hidden width of a dense layer's network
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    max_seq_len: int = 512
    image_size: int = 0  # pixels a side of the square in which a picture is seen; 0: no image front end
    patch_size: int = 8  # pixels a side of what becomes one token of a picture

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
        if self.n_experts and not 1 <= self.top_k <= self.n_experts:
            raise ValueError(f"top_k ({self.top_k}) must be between 1 and n_experts ({self.n_experts})")
        if self.dense_layers and not self.d_dense:
            raise ValueError("d_dense must be given where layers are dense (n_experts = 0, or first_dense_layers > 0)")
        if self.image_size and (self.patch_size < 1 or self.image_size % self.patch_size):
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        if self.is_moe and self.router == "softmax" and (self.n_shared_experts or self.first_dense_layers):
            # Otherwise such a model could be trained and then not be stored as an architecture that others load.
            raise ValueError(
                "shared experts and dense first layers go with router='sigmoid'; gpt_oss, as which a softmax router is stored, has neither"
            )

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 0

    @property
    def dense_layers(self) -> int:
        """How many layers, counted from the bottom, have no experts."""
        return min(self.first_dense_layers, self.n_layers) if self.is_moe else self.n_layers

    @property
    def image_patches(self) -> int:
        """How many tokens of the sequence a picture takes; 0 without an image front end."""
        return (self.image_size // self.patch_size) ** 2

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Unknown fields are left aside, so that a newer version's description can be read. TypeError where one is missing."""
        names = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in names})

    def with_(self, **changes: Any) -> "ModelConfig":
        return replace(self, **changes)


# The vocabulary of the small ones is the most their tokenizer may learn; a small corpus gives a smaller one.
PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(2048, 128, 3, 4, 2, 32, 128, 8, 2, max_seq_len=512),
    "small": ModelConfig(4096, 256, 6, 8, 4, 32, 256, 8, 2, max_seq_len=512),
    "base": ModelConfig(8192, 512, 8, 8, 4, 64, 512, 16, 2, max_seq_len=1024),
    "moe-16b-a3b": ModelConfig(102_400, 2048, 28, 32, 4, 128, 1376, 64, 8, tie_embeddings=False, max_seq_len=4096),
    "moe-128b-a16b": ModelConfig(128_000, 4096, 48, 40, 8, 128, 2640, 80, 8, tie_embeddings=False, max_seq_len=8192),
}


def dense_twin(config: ModelConfig) -> ModelConfig:
    """A dense model of the same total size: one network as wide as all experts together (the routers' few parameters aside)."""
    if not config.is_moe:
        return config
    expert_layers = config.n_layers - config.dense_layers
    wide = config.d_expert * (config.n_experts + config.n_shared_experts)
    d_dense = (wide * expert_layers + config.d_dense * config.dense_layers) // config.n_layers
    return config.with_(n_experts=0, top_k=0, d_expert=0, router="softmax", n_shared_experts=0, first_dense_layers=0, d_dense=d_dense)
