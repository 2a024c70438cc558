"""Rotary frequencies stretched for contexts longer than those a model was first trained on. Plain numbers; needs no torch."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

ScalingKind = Literal["yarn", "linear", "llama3"]


@dataclass(frozen=True)
class RopeScaling:
    """`yarn`: Peng et al. 2023, with DeepSeek's mscale; `linear`: positions divided by `factor`; `llama3`: Llama 3.1.

    The fields are those of `rope_parameters` in a Hugging Face configuration, under the same names but for `kind` and `original_length`.
    """

    kind: ScalingKind
    factor: float
    original_length: int = 0  # the context first trained on
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # the range of blended frequencies has whole numbers as ends
    attention_factor: float | None = None  # of cosines and sines; None: from the factor and the two below
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScalingKind):
            raise ValueError(f"rotary positions of type {self.kind!r} are not supported; {', '.join(('default', *get_args(ScalingKind)))} are")
        if self.kind != "linear" and self.original_length < 1:
            raise ValueError(f"rotary positions of type {self.kind!r} need original_max_position_embeddings")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RopeScaling":
        return cls(**values)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by (YaRN §3.4)."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)

    @property
    def logit_stretch(self) -> float:
        """By which DeepSeek multiplies queries and keys each, besides."""
        return _mscale(self.factor, self.mscale_all_dim) if self.mscale_all_dim else 1.0

    def stretch(self, frequencies: list[float], theta: float) -> list[float]:
        """`frequencies`: theta^(-2i / width) for i = 0 … width / 2 - 1, in radians a token → the stretched ones."""
        if self.kind == "linear":
            return [f / self.factor for f in frequencies]
        if self.kind == "llama3":
            return [self._llama3(f) for f in frequencies]
        low, high = self._blended_range(2 * len(frequencies), theta)
        keep = [1 - min(max((i - low) / (high - low), 0.0), 1.0) for i in range(len(frequencies))]
        return [f / self.factor * (1 - k) + f * k for f, k in zip(frequencies, keep, strict=True)]

    def _blended_range(self, width: int, theta: float) -> tuple[float, float]:
        def dimension(turns: float) -> float:
            """Which frequency makes so many turns over the first context."""
            return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        return low, high if high != low else high + 0.001

    def _llama3(self, frequency: float) -> float:
        length = 2 * math.pi / frequency
        if length < self.original_length / self.high_freq_factor:
            return frequency
        if length > self.original_length / self.low_freq_factor:
            return frequency / self.factor
        smooth = (self.original_length / length - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return (1 - smooth) * frequency / self.factor + smooth * frequency


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
