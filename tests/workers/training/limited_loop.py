"""A training loop that may allocate only so much more than at its start: python limited_loop.py SPEC.json MEGABYTES (0: no limit).

A process of its own: one that has freed memory before may use it again, and then meets no limit. The last line is what came of it.
"""

import json
import os
import resource
import sys
from pathlib import Path

import torch

from workers.protocol import JobError
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks
from workers.training.spec import TrainSpec


def main(path: str, megabytes: int) -> dict:
    torch.set_num_threads(1)
    alone, losses = Ranks(0, 1, 1, torch.device("cpu")), []
    spec = TrainSpec.model_validate_json(Path(path).read_text())
    loop = Loop(spec, alone, prepare(spec, alone))
    loop.teller.step = lambda progress, outcome, *rest: outcome and losses.append(outcome.loss)
    step = loop.step

    def limited():  # from the first step on
        loop.step = step
        if megabytes:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
        return step()

    loop.step = limited
    try:
        progress = loop.run()
    except JobError as error:
        return {"error": str(error)}
    return {"losses": losses, "micro_batches": progress.micro_batches, "examples_per_step": progress.examples_per_step}


print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
