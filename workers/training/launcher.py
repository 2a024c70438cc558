"""The command line of a training job."""

import sys


def command_line(world_size: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size), "-m", "workers.training"]
