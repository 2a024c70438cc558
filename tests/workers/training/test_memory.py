"""Memory that really runs out: the system refuses an allocation beyond a limit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.protocol import ran_out_of_memory
from workers.training.launcher import TORCHRUN_HERE, torchrun_options

ROOT = Path(__file__).resolve().parents[3]
# Balance and conversations are made within one micro-batch; without them, smaller ones give the same gradients.
BIG = {"micro_batch": 2048, "steps": 3, "aux_loss": 0.0, "z_loss": 0.0, "conversations": 0.0, "optimizer": "adamw", "max_length": 64}


def train_within(spec, megabytes: int) -> tuple[dict, list[dict]]:
    """What came of a training that may allocate so much more than at its start (0: as it likes), and its notes."""
    path = spec.work_folder.with_suffix(".json")
    path.write_text(spec.model_dump_json(exclude_unset=True))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("limited_loop.py")), str(path), str(megabytes)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines[-1], [line for line in lines if "Out of memory" in line.get("message", "")]


def test_a_step_that_does_not_fit_is_done_in_smaller_parts_with_the_same_result(make_spec):
    free, _ = train_within(make_spec("free", **BIG), 0)
    limited, notes = train_within(make_spec("limited", **BIG), 150)
    parts = limited["micro_batches"]
    assert parts >= 2 and limited["examples_per_step"] == 2048
    assert limited["losses"] == pytest.approx(free["losses"], rel=1e-4)
    assert [note["accum_steps"] for note in notes] == [2**n for n in range(1, len(notes) + 1)]
    assert notes[-1]["accum_steps"] == parts and notes[-1]["micro_batch"] == 2048 // parts


def test_where_a_single_example_does_not_fit_the_job_says_what_to_do(make_spec, tiny):
    wide = {**tiny, "d_model": 256, "d_expert": 512}  # whose gradients alone need 100 MB
    done, _ = train_within(make_spec("wide", **{**BIG, "micro_batch": 4, "model": wide}), 10)
    assert "Out of memory with one example at a time" in done["error"] and "activation_checkpointing" in done["error"]


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
        [*TORCHRUN_HERE, *torchrun_options(2), str(Path(__file__).with_name("limited.py")), str(spec.work_folder / "spec.json")],
        cwd=ROOT, env={**os.environ, "LIMIT_MB": "60", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    (note,) = [e for e in events if "Out of memory" in e.get("message", "")]
    assert (note["micro_batch"], note["accum_steps"]) == (512, 2)
    assert events[-1]["event"] == "done" and events[-1]["result"]["steps"] == 3
    assert done.returncode == 0, done.stderr[-4000:].decode()
