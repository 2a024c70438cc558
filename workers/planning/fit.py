"""The configuration nearest to the one that was asked for, among those that fit a machine's memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

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

    @property
    def step_examples(self) -> int:
        return self.micro_batch * self.accum_steps * self.ranks


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
_MICRO_BATCH, _CHECKPOINTING, _STAGE, _RANKS, _PRESET = 1.0, 2.5, 2.0, 3.0, 100.0
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
        for change, configuration in _variants(replace(asked, preset=shape.name), may_checkpoint):
            cost = smaller * _PRESET + change
            if best is not None and cost >= best[0]:
                continue
            found = planned(configuration, shape, rows(configuration.micro_batch))
            if found.bytes_in_all <= room:
                best = cost, found
        if best is not None:
            break
    return best[1] if best else None


def _variants(asked: Configuration, may_checkpoint: bool) -> Iterator[tuple[float, Configuration]]:
    """All ways to make one step of the same examples, with what each costs."""
    for fewer in range(asked.ranks.bit_length()):
        if asked.ranks % 2**fewer:
            break
        ranks, accum = asked.ranks // 2**fewer, asked.accum_steps * 2**fewer
        stages = range(asked.stage, 4) if ranks > 1 else [0]
        for stage in stages:
            for checkpointing in {asked.checkpointing, asked.checkpointing or may_checkpoint}:
                for halvings in range(asked.micro_batch.bit_length()):
                    if asked.micro_batch % 2**halvings or accum * 2**halvings > MOST_ACCUMULATED:
                        break
                    cost = fewer * _RANKS + abs(stage - asked.stage) * _STAGE * (ranks > 1) + halvings * _MICRO_BATCH
                    cost += _CHECKPOINTING * (checkpointing and not asked.checkpointing)
                    yield cost, replace(
                        asked, micro_batch=asked.micro_batch // 2**halvings, accum_steps=accum * 2**halvings, ranks=ranks, stage=stage,
                        checkpointing=checkpointing,
                    )  # fmt: skip
