"""A run's checkpoint: written to a temporary folder and renamed, so that one that is found is whole.

work_folder/checkpoints/00000420/
    progress.json            step, tokens, elapsed, sampler position, loss scale, number of files, …
    rank0.safetensors        weights, optimizer state, random generator; one file a rank, each with what it alone holds

Tensors are named by parameter and say which rows they are, so that other ranks than those that wrote may go on: another number
of them, or another ZeRO stage. The last two are kept: the newest may hold weights that the next step finds broken.
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
from torch import Tensor, nn

from workers.protocol import JobError
from workers.training.parallel import stepping
from workers.training.parts import part_of, rows_of, share_of
from workers.training.precision import Precision
from workers.training.ranks import Ranks
from workers.training.shards import Rows, Saved, write

LARGEST_SHARE = 0.03  # of the time that checkpoints may take; a slow disk makes them rarer
FOLDER = "checkpoints"
FORMAT = 2


@dataclass
class Progress:
    """Where a run is, all of it: with the tensors, enough to go on as if nothing had happened."""

    format: int = 1  # of a file that does not say
    files: int = 1  # ranks that wrote it
    step: int = 0
    examples_per_step: int = 0  # over all ranks; kept, whoever goes on
    micro_batches: int = 0  # of a step, over all ranks; doubled where memory ran out
    tokens: int = 0
    learnt_tokens: int = 0
    elapsed: float = 0.0  # seconds of training, over all of its starts
    skipped_steps: int = 0
    lr_factor: float = 1.0  # halved when the run diverged
    stage: int = 0  # of the curriculum
    sampler: tuple[int, int] = (0, 0)  # in the stage's examples
    scaler: dict[str, Any] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)  # workers.training.health
    recent_loss: float = 0.0  # decayed sums over the steps: workers.training.recent
    recent_weight: float = 0.0
    recent_load: list[list[float]] = field(default_factory=list)  # layers × experts
    domain_counts: list[list[list[float]]] = field(default_factory=list)  # layers × domains × experts: workers.training.domain_routing


class Checkpoints:
    """Writes and finds the checkpoints of one run. All ranks call each method together.

    `average`: name → this rank's part of the averaged weights, where the run has such.
    """

    def __init__(
        self,
        work_folder: Path,
        ranks: Ranks,
        stage: int,
        every_seconds: float,
        average: dict[str, Tensor] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder = work_folder / FOLDER
        self._ranks = ranks
        self._stage = stage if ranks.size > 1 else 0
        self._every = every_seconds
        self._average = average or {}
        self._clock = clock
        self._due = clock() + every_seconds

    @property
    def is_due(self) -> bool:
        """By this rank's clock: ask the first rank's only."""
        return self._clock() >= self._due

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
        began = self._clock()
        progress.scaler = precision.scaler.state_dict()
        progress.format, progress.files = FORMAT, self._ranks.size
        final = self._folder / f"{progress.step:08d}"
        temporary = self._folder / f"{progress.step:08d}.tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        write(temporary / self._file(self._ranks.rank), *self._tensors(model, optimizer))
        self._ranks.barrier()
        if self._ranks.is_first:
            (temporary / "progress.json").write_text(json.dumps(asdict(progress)))
            self._publish(temporary, final)
        self._ranks.barrier()
        took = self._clock() - began
        self._due = self._clock() + max(self._every, took / LARGEST_SHARE)

    def _publish(self, temporary: Path, final: Path) -> None:
        if final.exists():  # of the same step, from before the run went back beyond it
            final.rename(final.with_suffix(".old"))
        temporary.rename(final)
        kept = [final, *sorted((p for p in self._found() if p < final), reverse=True)[:1]]
        for folder in self._folder.iterdir():
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("*") if p.name.isdigit() and (p / "progress.json").exists())

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, before: int | None = None) -> Progress | None:
        """Put the newest checkpoint into model and optimizer; of those of at most `before` steps, if there are such. None where there is none."""
        found = self._found()
        if not found:
            return None
        good = [p for p in found if before is None or int(p.name) <= before]
        folder = good[-1] if good else found[0]
        try:
            progress = Progress(**json.loads((folder / "progress.json").read_text()))
            if progress.format != FORMAT:
                raise ValueError("another version of the portal wrote it")
            progress.sampler = (progress.sampler[0], progress.sampler[1])
            saved = Saved(folder / self._file(rank) for rank in range(progress.files))
            self._read(saved, model, optimizer)
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise JobError(f"The checkpoint {folder.name} cannot be read ({error}). Cancel this job and start a new one.") from error
        if precision.scales and progress.scaler:
            precision.scaler.load_state_dict(progress.scaler)
        return progress

    @torch.no_grad()
    def _read(self, saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, tensor in model.state_dict().items():
            saved.copy_into(f"model.{name}", tensor, like=parameters.get(name))
        for name, tensor in self._average.items():
            # A run that averages only since it was resumed begins with the weights as they are.
            saved.copy_into(f"average.{name}" if f"average.{name}" in saved else f"model.{name}", tensor, like=parameters[name])
        keys: dict[str, list[str]] = {}
        for name in saved.names():
            if name.startswith("optimizer."):
                keys.setdefault(name.split(".", 1)[1].rsplit(".", 1)[0], []).append(name)
        for name, parameter, states in _stepped(model, optimizer):
            state: dict[str, Any] = {}
            for key in keys.get(name, []):
                if saved.is_scalar(key):
                    state[key.rsplit(".", 1)[1]] = saved.whole(key).to(parameter.device)
                else:
                    state[key.rsplit(".", 1)[1]] = like = torch.zeros_like(parameter)  # spread as the parameter is
                    saved.copy_into(key, like, like=parameter)
            states[parameter] = state
        random = f"random.{self._ranks.rank}"
        torch.set_rng_state(saved.whole(random if random in saved else "random.0"))

    def _writes(self, parameter: Any, from_stage: int) -> bool:
        """Whether this rank writes what it holds of a parameter; one rank of those with the same writes, up to the stage that shards it."""
        share = share_of(parameter)
        return self._stage >= from_stage or (share.is_first_copy if share else self._ranks.is_first)

    @staticmethod
    def _file(rank: int) -> str:
        return f"rank{rank}.safetensors"

    def _tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Rows]]:
        """What this rank alone holds, and of the parts, which rows they are."""
        tensors = {f"random.{self._ranks.rank}": torch.get_rng_state()}
        rows: dict[str, Rows] = {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        tied: set[int] = set()

        def keep(key: str, tensor: Any, parameter: Any, is_mine: bool) -> None:
            spread = parameter is not None and tensor.dim() > 0 and part_of(parameter).shape != _whole_shape(parameter)
            if not is_mine:
                return
            part = part_of(tensor).detach()
            # Tied weights are two names of one storage, which safetensors refuses.
            tensors[key] = part.clone() if part.data_ptr() in tied else part.contiguous()
            if part.numel():
                tied.add(part.data_ptr())
            if spread:
                rows[key] = rows_of(parameter)

        for name, tensor in model.state_dict().items():
            keep(f"model.{name}", tensor, parameters.get(name), self._writes(parameters.get(name), 2))
        for name, tensor in self._average.items():
            keep(f"average.{name}", tensor, parameters[name], self._writes(parameters[name], 2))
        for name, parameter, states in _stepped(model, optimizer):
            for key, value in states[parameter].items():
                keep(f"optimizer.{name}.{key}", value, parameter, self._writes(parameter, 1))
        return tensors, rows


def _whole_shape(parameter: Any) -> tuple[int, ...]:
    return (rows_of(parameter)[1], *parameter.shape[1:])


def _stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor, dict[Any, Any]]]:
    """The parameters whose optimizer state this rank has, by name, each with where all states are held."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(names[id(p)], p, local.state) for local in stepping(optimizer) for group in local.param_groups for p in group["params"]]
