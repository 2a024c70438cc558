"""`python -m workers.training`, with a checkpoint after every tenth step, and none between. It stands still once it has told of step HELD_AT.

A kill meets it there, however quick the machine and however late whoever kills.
"""

import os
import runpy
import signal

from workers.training.loop import Loop
from workers.training.state import Checkpoints

between_steps = Loop._between_steps


def held(self: Loop, outcome) -> None:
    Checkpoints.is_due = self.progress.step % 10 == 0
    between_steps(self, outcome)
    if self.progress.step == int(os.environ["HELD_AT"]):
        signal.pause()


Loop._between_steps = held
runpy.run_module("workers.training", run_name="__main__")
