"""Who this process is among the ranks of a run. A run of one rank needs no process group."""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from workers.protocol import JobError
from workers.training.memory import keep_freed_memory
from workers.training.spec import TrainSpec

# A rank may wait while the first one writes the model; a rank that died ends the run sooner, torchrun sees to that.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    rank: int
    size: int
    local_size: int  # ranks on this machine
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join(spec: TrainSpec) -> Ranks:
    """Take part in the run, as torchrun's environment says. JobError where the ranks are not those of the spec, or the device is missing."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if size != spec.world_size:
        raise JobError(
            f"The job wants {spec.world_size} ranks and was started with {size}. Start it with torchrun --nproc-per-node {spec.world_size}."
        )
    torch.set_num_threads(max(1, spec.threads // local_size))
    keep_freed_memory()
    ranks = Ranks(rank, size, local_size, _device(spec, local_rank))
    if size > 1:
        store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
        # torchrun keeps one store over its restarts, in which gloo would wait at the addresses of ranks that are gone.
        store = dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group("nccl" if spec.device == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return ranks


def leave(ranks: Ranks) -> None:
    if ranks.size > 1:
        dist.barrier()
        dist.destroy_process_group()


def end_at_once() -> NoReturn:
    """End a rank that has left, and whose work is done, without Python's own ending: gloo's threads may hold tensors a moment longer than
    the process group lives, and to free one while the interpreter ends aborts the process (https://github.com/pytorch/pytorch/issues/190489),
    so that the run would fail.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _device(spec: TrainSpec, local_rank: int) -> torch.device:
    if spec.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise JobError("The job wants a GPU, and PyTorch sees none here. Install the CUDA build of PyTorch, or train with device cpu.")
    if local_rank >= torch.cuda.device_count():
        raise JobError(f"Rank {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. Lower world_size.")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
