"""Memory that really runs out: the system refuses an allocation beyond a limit."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.protocol import JobError
from workers.training.health import ran_out_of_memory
from workers.training.launcher import torchrun_options
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ROOT = Path(__file__).resolve().parents[3]
ALONE = Ranks(0, 1, 1, torch.device("cpu"))
# Balance and conversations are made within one micro-batch; without them, smaller ones give the same gradients.
BIG = {"micro_batch": 2048, "steps": 3, "aux_loss": 0.0, "z_loss": 0.0, "conversations": 0.0, "optimizer": "adamw", "max_length": 64}


def train_within(spec, megabytes: int | None):
    """In a process that may have so much more than at its start. The losses, the events, the run's progress."""

    def run(ranks: Ranks):
        events = []
        loop = Loop(spec, ALONE, prepare(spec, ALONE))
        loop.teller.step = lambda progress, outcome, *rest: outcome and events.append(outcome.loss)
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
            return events, str(error), None
        return events, progress.micro_batches, progress.examples_per_step

    return run


def test_a_step_that_does_not_fit_is_done_in_smaller_parts_with_the_same_result(make_spec, on_ranks, capfd):
    ((losses, _, _),) = on_ranks(1, train_within(make_spec("free", **BIG), None))
    capfd.readouterr()

    ((limited, parts, examples),) = on_ranks(1, train_within(make_spec("limited", **BIG), 150))

    assert parts >= 2 and examples == 2048
    assert limited == pytest.approx(losses, rel=1e-4)
    notes = [json.loads(line) for line in capfd.readouterr().out.splitlines() if "Out of memory" in line]
    assert [note["accum_steps"] for note in notes] == [2**n for n in range(1, len(notes) + 1)]
    assert notes[-1]["accum_steps"] == parts and notes[-1]["micro_batch"] == 2048 // parts


def test_where_a_single_example_does_not_fit_the_job_says_what_to_do(make_spec, on_ranks, tiny):
    wide = {**tiny, "d_model": 256, "d_expert": 512}  # whose gradients alone need 100 MB
    ((_, said, _),) = on_ranks(1, train_within(make_spec("wide", **{**BIG, "micro_batch": 4, "model": wide}), 10))
    assert "Out of memory with one example at a time" in said and "activation_checkpointing" in said


def test_what_pytorch_says_of_missing_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value) and not ran_out_of_memory(RuntimeError("another thing"))


@pytest.mark.faults
def test_ranks_of_which_one_ran_out_of_memory_start_again_with_smaller_parts(make_spec):
    spec = make_spec("ranks", **{**BIG, "micro_batch": 1024}, world_size=2, threads=2)
    spec.work_folder.mkdir()
    (spec.work_folder / "spec.json").write_text(spec.model_dump_json(exclude_unset=True))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *torchrun_options(2), str(Path(__file__).with_name("limited.py")),
         str(spec.work_folder / "spec.json")],
        cwd=ROOT, env={**os.environ, "LIMIT_MB": "60", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    (note,) = [e for e in events if "Out of memory" in e.get("message", "")]
    assert (note["micro_batch"], note["accum_steps"]) == (512, 2)
    assert events[-1]["event"] == "done" and events[-1]["result"]["steps"] == 3 and done.returncode == 0
