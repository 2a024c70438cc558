"""`python -m workers.training`, but the second rank may allocate only LIMIT_MB more once it trains, the first time that it is started."""

import os
import resource
import runpy
from pathlib import Path

from workers.training.loop import Loop

run = Loop.run


def limited(self: Loop):
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + int(os.environ["LIMIT_MB"]) * 2**20, resource.RLIM_INFINITY))
    return run(self)


Loop.run = limited
runpy.run_module("workers.training", run_name="__main__")
