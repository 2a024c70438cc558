"""What the policy's variants must keep, and which of them no other beats."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.compression.spec import CompressSpec

JUDGED_TOGETHER = 8  # answers at a time at which a limit of speed is meant: between one alone and all slots taken
JUDGED_AT = f"batch_{JUDGED_TOGETHER}"


@dataclass(frozen=True)
class Figures:
    """What was measured of one model."""

    bleu: float
    bleu_low: float
    bleu_high: float
    questions: int
    tokens_per_second: float  # all questions together, on the wall's clock
    p50_ms: float  # of an answer given alone
    p99_ms: float
    bytes: int  # of the weights
    speed_ratio: float  # of decoding, next to the parent's, at JUDGED_AT
    speed_ratios: dict[str, float] = field(default_factory=dict)  # the same at one, eight and 32 answers at a time: "batch_1", "batch_8", "batch_32"


@dataclass(frozen=True)
class Constraints:
    bleu: float  # at least
    bytes: int | None = None  # at most
    p99_ms: float | None = None  # at most
    speed_ratio: float | None = None  # at least
    target: str = "cpu"

    @classmethod
    def of(cls, spec: CompressSpec, parent_bleu: float) -> "Constraints":
        least = parent_bleu * spec.min_bleu_ratio if spec.min_bleu_ratio is not None else parent_bleu - spec.max_bleu_loss
        return cls(least, spec.max_bytes, spec.max_p99_ms, spec.min_speed_ratio, spec.target)

    @property
    def wanted(self) -> str:
        parts = [f"at least {self.bleu:.1f} BLEU"]
        if self.bytes is not None:
            parts.append(f"at most {self.bytes:,} bytes")
        if self.p99_ms is not None:
            parts.append(f"a P99 of at most {self.p99_ms:g} ms")
        if self.speed_ratio is not None:
            parts.append(f"at least {self.speed_ratio:g} times the speed")
        if self.target == "onnx":
            parts.append("a graph for onnxruntime")
        return " and ".join(parts)

    @property
    def takes_any_shape(self) -> bool:
        return self.bytes is None and self.speed_ratio is None

    def shortfalls(self, found: Figures, *, servable: bool = True) -> list[str]:
        """What is not good enough, in words."""
        short = self.shortfalls_of_quality(found) + self.shortfalls_of_shape(found.bytes, found.speed_ratio)
        if self.p99_ms is not None and found.p99_ms > self.p99_ms:
            short.append(f"a P99 of {found.p99_ms:.1f} ms is more than the {self.p99_ms:g} ms allowed")
        if not servable:
            short.append("it is no graph for onnxruntime yet")
        return short

    def shortfalls_of_shape(self, weight_bytes: int, speed_ratio: float, missed_by: float = 0.0) -> list[str]:
        """Of what does not depend on what the weights say. `missed_by`: the share of the speed that it may lack."""
        short = []
        if self.bytes is not None and weight_bytes > self.bytes:
            short.append(f"{weight_bytes:,} bytes are more than the {self.bytes:,} allowed")
        if self.speed_ratio is not None and speed_ratio < self.speed_ratio * (1 - missed_by):
            short.append(f"{speed_ratio:.2f} times the parent's speed is less than the {self.speed_ratio:g} wanted")
        return short

    def shortfalls_of_quality(self, found: Figures) -> list[str]:
        return [f"BLEU {found.bleu:.1f} is below the least of {self.bleu:.1f}"] if found.bleu < self.bleu else []


def pareto(found: Sequence[Figures]) -> list[Figures]:
    """Those that no other beats: at least as good in bytes, speed and BLEU, and better in one."""

    def goodness(one: Figures) -> tuple[float, ...]:
        return -one.bytes, one.speed_ratio, one.bleu

    def beaten(one: Figures) -> bool:
        return any(
            all(a >= b for a, b in zip(goodness(other), goodness(one), strict=True)) and goodness(other) != goodness(one) for other in found
        )  # fmt: skip

    return [one for one in found if not beaten(one)]
