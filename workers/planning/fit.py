"""The configuration nearest to the one that was asked for, among those that fit a machine's memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from workers.planning.memory import Moment, Part, Setting, peak, total
from workers.planning.rows import Rows
from workers.planning.shape import Shape


@dataclass(frozen=True)
class Configuration:
    """What decides a run's memory. The examples of one step of the optimizer are micro_batch · accum_steps · ranks."""

    preset: str
    precision: str
    micro_batch: int
    accum_steps: int
    ranks: int
    stage: int
    checkpointing: bool = False
    lora_rank: int = 0
    expert_ranks: int = 1  # over which each layer's experts are spread
    average: bool = False  # a moving average of the weights is kept
    pairs: int = 0  # of answers, where preferences are learnt
    optimizer: Literal["muon", "adamw"] = "muon"

    @property
    def step_examples(self) -> int:
        return self.micro_batch * self.accum_steps * self.ranks

    @property
    def sequences(self) -> int:
        """Of one forward pass: preferences are learnt from two answers at a time."""
        return self.micro_batch * (2 if self.pairs else 1)


@dataclass(frozen=True)
class Planned:
    configuration: Configuration
    moment: Moment
    parts: list[Part]
    rank_bytes: float

    @property
    def bytes_in_all(self) -> float:
        """Of all ranks on one machine."""
        return self.rank_bytes * self.configuration.ranks


# What a change costs, in the order in which it is rather done without: the same steps at the same speed; a third more computing;
# more exchange between the ranks; fewer ranks to share the work; another model.
_MICRO_BATCH, _CHECKPOINTING, _STAGE, _EXPERTS, _RANKS, _PRESET = 1.0, 2.5, 2.0, 2.2, 3.0, 100.0
MOST_ACCUMULATED = 4096


def planned(configuration: Configuration, shape: Shape, rows: Rows) -> Planned:
    moment, parts = peak(
        Setting(
            shape,
            configuration.precision,
            rows.rows,
            rows.length,
            configuration.stage,
            configuration.ranks,
            configuration.accum_steps,
            rows.learnt_share,
            checkpointing=configuration.checkpointing,
            lora_rank=configuration.lora_rank,
            expert_ranks=configuration.expert_ranks,
            average=configuration.average,
            pairs=configuration.pairs,
            optimizer=configuration.optimizer,
            patch_share=rows.patch_share,
        )
    )
    return Planned(configuration, moment, parts, total(parts))


def nearest(
    asked: Configuration, shapes: Sequence[Shape], rows: Callable[[int], Rows], room: float, *, may_checkpoint: bool = False
) -> Planned | None:
    """Of all configurations whose ranks together fit into `room` bytes, the one that changes least. None where none does.

    `shapes`: the presets to choose from, that asked for among them; a run that goes on from a parent has its shape only. `rows`:
    the forward pass of a number of examples. The examples of one step of the optimizer stay as many.
    """
    by_size = sorted(shapes, key=lambda shape: -shape.total_parameters)
    at = next(i for i, shape in enumerate(by_size) if shape.name == asked.preset)
    best: tuple[float, Planned] | None = None
    for smaller, shape in enumerate(by_size[at:]):
        for change, configuration in _variants(replace(asked, preset=shape.name), 0 if shape.estimated else shape.n_experts, may_checkpoint):
            cost = smaller * _PRESET + change
            if best is not None and cost >= best[0]:
                continue
            found = planned(configuration, shape, rows(configuration.sequences))
            if found.bytes_in_all <= room:
                best = cost, found
        if best is not None:
            break
    return best[1] if best else None


def _variants(asked: Configuration, n_experts: int, may_checkpoint: bool) -> Iterator[tuple[float, Configuration]]:
    """All ways to make one step of the same examples, with what each costs."""
    for fewer in range(asked.ranks.bit_length()):
        if asked.ranks % 2**fewer:
            break
        ranks, accum = asked.ranks // 2**fewer, asked.accum_steps * 2**fewer
        for stage, spread in _spreads(asked, n_experts, ranks):
            apart = fewer * _RANKS + (abs(stage - asked.stage) * _STAGE + (spread != asked.expert_ranks) * _EXPERTS) * (ranks > 1)
            for checkpointing in {asked.checkpointing, asked.checkpointing or may_checkpoint}:
                for halvings in range(asked.micro_batch.bit_length()):
                    if asked.micro_batch % 2**halvings or accum * 2**halvings > MOST_ACCUMULATED:
                        break
                    cost = apart + halvings * _MICRO_BATCH + _CHECKPOINTING * (checkpointing and not asked.checkpointing)
                    yield cost, replace(
                        asked, micro_batch=asked.micro_batch // 2**halvings, accum_steps=accum * 2**halvings, ranks=ranks, stage=stage,
                        checkpointing=checkpointing, expert_ranks=spread,
                    )  # fmt: skip


def _spreads(asked: Configuration, n_experts: int, ranks: int) -> Iterator[tuple[int, int]]:
    """ZeRO stages, each with the ranks that experts may be spread over: as many as divide both, in stages 0 and 1."""
    for stage in range(asked.stage, 4) if ranks > 1 else [0]:
        sizes = {1, asked.expert_ranks, ranks} if stage <= 1 else {1}
        yield from ((stage, size) for size in sizes if size == 1 or (n_experts and n_experts % size == 0 and ranks % size == 0))
