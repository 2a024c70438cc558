"""A run's checkpoint: written to a temporary folder and renamed, so that one that is found is whole.

work_folder/checkpoints/00000420/
    progress.json            step, tokens, elapsed, sampler position, loss scale, …
    rank0.safetensors        weights, optimizer state, random generator; one file a rank, each with what it alone holds
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workers.training.parallel import part_of
from workers.training.precision import Precision
from workers.training.ranks import Ranks

LARGEST_SHARE = 0.03  # of the time that checkpoints may take; a slow disk makes them rarer
FOLDER = "checkpoints"


@dataclass
class Progress:
    """Where a run is, all of it: with the tensors, enough to go on as if nothing had happened."""

    step: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    elapsed: float = 0.0  # seconds of training, over all of its starts
    skipped_steps: int = 0
    lr_factor: float = 1.0  # halved when the run diverged
    stage: int = 0  # of the curriculum
    sampler: tuple[int, int] = (0, 0)  # in the stage's examples
    scaler: dict[str, Any] = field(default_factory=dict)
    recent_loss: float = 0.0  # decayed sums over the steps: workers.training.recent
    recent_weight: float = 0.0
    recent_load: list[list[float]] = field(default_factory=list)  # layers × experts
    domain_counts: list[list[list[float]]] = field(default_factory=list)  # layers × domains × experts: workers.training.domain_routing


class Checkpoints:
    """Writes and finds the checkpoints of one run. All ranks call each method together."""

    def __init__(self, work_folder: Path, ranks: Ranks, stage: int, every_seconds: float, clock: Callable[[], float] = time.monotonic):
        self._folder = work_folder / FOLDER
        self._ranks = ranks
        self._stage = stage if ranks.size > 1 else 0
        self._every = every_seconds
        self._clock = clock
        self._due = clock() + every_seconds

    @property
    def is_due(self) -> bool:
        """By this rank's clock: ask the first rank's only."""
        return self._clock() >= self._due

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
        began = self._clock()
        progress.scaler = precision.scaler.state_dict()
        final = self._folder / f"{progress.step:08d}"
        temporary = self._folder / f"{progress.step:08d}.tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(model, optimizer), temporary / self._file(self._ranks.rank))
        self._ranks.barrier()
        if self._ranks.is_first and not final.exists():
            (temporary / "progress.json").write_text(json.dumps(asdict(progress)))
            temporary.rename(final)
        if self._ranks.is_first:
            for folder in self._folder.iterdir():
                if folder != final:
                    shutil.rmtree(folder, ignore_errors=True)
        self._ranks.barrier()
        took = self._clock() - began
        self._due = self._clock() + max(self._every, took / LARGEST_SHARE)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision) -> Progress | None:
        """Put the newest checkpoint into model and optimizer. None where there is none."""
        found = sorted(p for p in self._folder.glob("*") if (p / "progress.json").exists() and p.suffix != ".tmp")
        if not found:
            return None
        try:
            progress = Progress(**json.loads((found[-1] / "progress.json").read_text()))
            progress.sampler = (progress.sampler[0], progress.sampler[1])
            mine = load_file(found[-1] / self._file(self._ranks.rank))
            weights = mine if self._holds_weights else load_file(found[-1] / self._file(0))
            state = mine if self._holds_optimizer else weights
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            from workers.protocol import JobError

            raise JobError(f"The checkpoint {found[-1].name} cannot be read ({error}). Cancel this job and start a new one.") from error
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                part_of(tensor).copy_(weights[f"model.{name}"])
        _load_optimizer(optimizer, state)
        if precision.scales:
            precision.scaler.load_state_dict(progress.scaler)
        torch.set_rng_state(mine["random"])
        return progress

    @property
    def _holds_weights(self) -> bool:
        return self._ranks.is_first or self._stage >= 2

    @property
    def _holds_optimizer(self) -> bool:
        return self._ranks.is_first or self._stage >= 1

    @staticmethod
    def _file(rank: int) -> str:
        return f"rank{rank}.safetensors"

    def _tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        tensors = {"random": torch.get_rng_state()}
        if self._holds_weights:
            tied: set[int] = set()
            for name, tensor in model.state_dict().items():
                part = part_of(tensor).detach()
                # Tied weights are two names of one storage, which safetensors refuses.
                tensors[f"model.{name}"] = part.clone() if part.data_ptr() in tied else part.contiguous()
                tied.add(part.data_ptr())
        if self._holds_optimizer:
            for number, state in enumerate(_states(optimizer)):
                tensors |= {f"optimizer.{number}.{key}": part_of(value).detach().contiguous() for key, value in state.items()}
        return tensors


def _local(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """ZeroRedundancyOptimizer steps an optimizer over this rank's share of the parameters."""
    return getattr(optimizer, "optim", optimizer)


def _states(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    local = _local(optimizer)
    return [local.state[p] for group in local.param_groups for p in group["params"]]


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    local = _local(optimizer)
    parameters = [p for group in local.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        saved = {k.rsplit(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"optimizer.{number}.")}
        local.state[parameter] = {key: value.to(parameter.device) if value.dim() == 0 else _like(parameter, value) for key, value in saved.items()}


def _like(parameter: Tensor, part: Tensor) -> Tensor:
    """This rank's part of an optimizer state as a tensor spread like its parameter."""
    like = torch.zeros_like(parameter)
    part_of(like).copy_(part)
    return like
