"""SIGKILL at random moments, and in the middle of writing a checkpoint, until the run has come to its end."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from workers.training import state
from workers.training.telling import Teller
from workers.training.train import train

STEPS = 25


def _train(spec, out, dies_writing: int | None, dies_after: tuple[int, float] | None) -> None:
    """With a checkpoint after every step, so that many kills meet one that is being written. It dies in the middle of so many writes, or
    so many seconds after so many steps, and two steps later at the latest: by the clock alone a machine that is quick for once would be done."""
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    torch.set_num_threads(1)
    state.LARGEST_SHARE = 1e9
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends a process as SIGKILL does: without a word
    written, write = 0, state.write
    told, tell = 0, Teller.step

    def write_or_die(path, *what):
        nonlocal written
        written += 1
        write(path, *what)
        if written == dies_writing:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def tell_and_die(*what, **also):
        nonlocal told
        tell(*what, **also)
        told += 1
        if dies_after and told == dies_after[0]:
            signal.setitimer(signal.ITIMER_REAL, dies_after[1])
        if dies_after and told == dies_after[0] + 2:
            os.kill(os.getpid(), signal.SIGKILL)

    state.write, Teller.step = write_or_die, tell_and_die
    result = train(spec)
    with open(out, "a") as file:
        file.write(json.dumps({"event": "done", "result": result}) + "\n")
    os._exit(0)


def _events(out) -> list[dict]:
    found = []
    for line in out.read_text().splitlines() if out.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed process
    return found


@pytest.mark.faults
def test_a_run_killed_again_and_again_gives_the_same_model_bit_for_bit(make_spec, tmp_path):
    often = {"steps": STEPS, "checkpoint_every_seconds": 1e-6, "sample_every_seconds": 600}
    context = multiprocessing.get_context("fork")
    chance = random.Random(0)

    def run(spec, out, dies_writing=None, dies_after=None):
        process = context.Process(target=_train, args=(spec, out, dies_writing, dies_after), daemon=True)
        process.start()
        process.join(120)
        process.kill()
        process.join()

    whole = make_spec("whole", **often)
    began = time.monotonic()
    run(whole, tmp_path / "whole.jsonl")
    a_step = (time.monotonic() - began) / STEPS
    killed, out, kills, torn = make_spec("killed", **often), tmp_path / "killed.jsonl", 0, 0
    while not any(e["event"] == "done" for e in _events(out)):
        # Every third dies while it writes, each later than the one before; the others anywhere in a step, and after one that is kept.
        if kills % 3 == 0:
            run(killed, out, dies_writing=3 + kills)
        else:
            run(killed, out, dies_after=(chance.randint(2, 6), chance.uniform(1e-6, a_step)))
        torn += any((killed.work_folder / "checkpoints").glob("*.tmp"))
        kills += 1
        assert kills < 30

    assert kills >= 3 and torn >= 1
    expected = {e["step"]: e["loss"] for e in _events(tmp_path / "whole.jsonl") if e["event"] == "step"}
    seen: dict[int, set[float]] = {}
    for e in _events(out):
        if e["event"] == "step":
            seen.setdefault(e["step"], set()).add(e["loss"])
    assert seen == {step: {loss} for step, loss in expected.items()}  # a step that was done twice had the same loss twice
    ours, theirs = load_file(killed.output_folder / "model.safetensors"), load_file(whole.output_folder / "model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
