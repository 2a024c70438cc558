"""How a training child is started. Imports no torch: the web process asks too."""

import sys

MODULE = "workers.training"
# All ranks on this machine. By its address: torchrun would tell them its name, and where no name server knows it they never meet.
TORCHRUN_HERE = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
MOST_RESTARTS = 4  # each halves the micro-batch, when memory ran out: workers.training.again


def command_line(world_size: int) -> list[str]:
    """The command to which the path of the spec is added.

    One rank starts directly, two seconds sooner than through torchrun; more are started by torchrun on this machine. A run over
    several machines is the same module under a launcher of its own (`torchrun --nnodes …`, Kubeflow, Slurm).
    """
    if world_size == 1:
        return [sys.executable, "-m", MODULE]
    return [*TORCHRUN_HERE, *torchrun_options(world_size), "-m", MODULE]


def torchrun_options(ranks_a_node: int) -> list[str]:
    return ["--nproc-per-node", str(ranks_a_node), "--max-restarts", str(MOST_RESTARTS)]
