"""How a training child is started. Imports no torch: the web process asks too."""

import sys

MODULE = "workers.training"


def command_line(world_size: int) -> list[str]:
    """The command to which the path of the spec is added.

    One rank starts directly, two seconds sooner than through torchrun; more are started by torchrun on this machine. A run over
    several machines is the same module under a launcher of its own (`torchrun --nnodes …`, Kubeflow, Slurm).
    """
    if world_size == 1:
        return [sys.executable, "-m", MODULE]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size), "-m", MODULE]
