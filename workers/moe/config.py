"""What a model is made of, as data. Importing this needs no torch, so that the web process may."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from workers.moe.families import EXPERT_FEATURES, OPTIONAL, ROUTER_FEATURES, family_of, special_features
from workers.moe.scaling import RopeScaling

RouterKind = Literal["softmax", "sigmoid"]
QKNorm = Literal["none", "head", "whole"]

VISION_FILE = "vision.safetensors"  # of a model folder: the image front end, where there is one


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: RoPE, RMSNorm, grouped-query attention, SwiGLU; in each layer a mixture of experts, or one dense network.

    What open models do beyond that is a field each, off by default. ValueError for a combination that no architecture of
    `workers.moe.families` stores: it could be trained and then not be given to anybody.
    """

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
    image_stem: int = 0  # channels of the convolutions that a picture passes before it is cut into patches; 0: patches are of plain pixels

    # attention
    attention_bias: bool = False  # of queries, keys and values
    attention_out_bias: bool = False
    qk_norm: QKNorm = "none"  # RMSNorm of queries and keys: of each head (Qwen3), or of all heads as one vector (OLMoE)
    clip_qkv: float = 0.0  # queries, keys and values are cut to ± this; 0: they are not
    rotary_share: float = 1.0  # of a head's width, from its beginning, that is rotated
    rope_scaling: RopeScaling | None = None
    sliding_window: int = 0  # tokens that a sliding layer's query sees, itself included
    sliding_layers: tuple[int, ...] = ()
    attention_sinks: bool = False  # each head has a logit that takes part in the softmax and gives nothing (gpt-oss)
    # Latent attention (DeepSeek-V2 §2.1), on where kv_rank > 0. head_dim is the width of a query, its last rope_head_dim rotated.
    kv_rank: int = 0  # width of the latent from which keys and values are made
    q_rank: int = 0  # width of the latent from which queries are made; 0: from the input
    rope_head_dim: int = 0
    value_head_dim: int = 0

    # router
    router_bias: bool = True  # of the softmax router; the sigmoid one always has its selection bias
    norm_top_k: bool = True  # the chosen experts' weights are made to sum to 1
    routed_scaling: float = 1.0  # the weights are multiplied by this
    router_groups: int = 1  # experts stand in so many groups, and come from the best `router_top_groups` of them
    router_top_groups: int = 1

    # experts: clamp(gate) · sigmoid(alpha · gate) · (clamp(up) + offset)
    expert_bias: bool = False
    swiglu_alpha: float = 1.0
    swiglu_limit: float = 0.0  # the gate from above, up from both sides; 0: no limit
    swiglu_offset: float = 0.0

    def __post_init__(self) -> None:
        # What comes from JSON is a list and a dictionary.
        object.__setattr__(self, "sliding_layers", tuple(self.sliding_layers))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling.from_dict(self.rope_scaling))
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
        if self.kv_rank and not (0 < self.rope_head_dim < self.head_dim and self.rope_head_dim % 2 == 0 and self.value_head_dim > 0):
            raise ValueError("latent attention (kv_rank) needs an even rope_head_dim below head_dim, and a value_head_dim")
        if self.sliding_layers and not self.sliding_window:
            raise ValueError("sliding_layers need a sliding_window")
        if self.is_moe and (self.n_experts % self.router_groups or not 1 <= self.router_top_groups <= self.router_groups):
            raise ValueError(
                f"n_experts ({self.n_experts}) must be a multiple of router_groups ({self.router_groups}), of which router_top_groups are chosen"
            )
        if self.is_moe and self.top_k > self.n_experts // self.router_groups * self.router_top_groups:
            raise ValueError(f"top_k ({self.top_k}) experts do not fit into router_top_groups ({self.router_top_groups}) groups")
        family_of(self)

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

    @property
    def stem_layers(self) -> tuple[tuple[int, int, int], ...]:
        """Inputs, outputs and stride of each convolution before the patches: at most two halve the picture, and only as a patch can be halved."""
        if not self.image_stem:
            return ()
        halving = 2 if self.patch_size % 4 == 0 else 1 if self.patch_size % 2 == 0 else 0
        wide = 2 * self.image_stem
        return ((3, self.image_stem, 1), (self.image_stem, wide, 2), (wide, wide, 2))[: 1 + halving]

    @property
    def rotary_width(self) -> int:
        """How much of a query is rotated."""
        return self.rope_head_dim if self.kv_rank else int(self.head_dim * self.rotary_share)

    @property
    def attention_scale(self) -> float:
        """What the products of queries and keys are multiplied by. DeepSeek's YaRN makes them larger (`mscale_all_dim`)."""
        stretch = self.rope_scaling.logit_stretch if self.rope_scaling and self.kv_rank else 1.0
        return float(self.head_dim**-0.5 * stretch**2)

    @property
    def cached_heads(self) -> int:
        return 1 if self.kv_rank else self.n_kv_heads

    @property
    def cached_width(self) -> int:
        """Of a key in the cache. With latent attention it is the latent and the part that is rotated; the value lies within it."""
        return self.kv_rank + self.rope_head_dim if self.kv_rank else self.head_dim

    @property
    def cached_numbers_a_token(self) -> int:
        """Numbers that one token adds to the cache of keys and values, over all layers."""
        return self.n_layers * self.cached_heads * self.cached_width * (1 if self.kv_rank else 2)

    @property
    def family(self) -> str:
        """The architecture as which the model is stored (`workers.moe.families`)."""
        return family_of(self)

    @property
    def special_features(self) -> tuple[str, ...]:
        """The fields that go beyond the plain decoder, for what expresses only that (compiled runners, INT8, ONNX)."""
        return special_features(self)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Features that are off are left out: what nobody uses, nobody has to read."""
        off = {f.name: f.default for f in fields(self) if f.name in (*OPTIONAL, "image_stem")}
        values = {name: value for name, value in asdict(self).items() if name not in off or value != off[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

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
    plain = {f.name: f.default for f in fields(ModelConfig) if f.name in (*ROUTER_FEATURES, *EXPERT_FEATURES, *_NOT_DENSE)}
    return config.with_(**plain, n_experts=0, top_k=0, d_expert=0, d_dense=d_dense)


# Nothing dense that we store has these; they hold next to no parameters.
_NOT_DENSE = ("attention_sinks", "sliding_window", "sliding_layers")
