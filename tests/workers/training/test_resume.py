"""Real children, killed with SIGKILL in the middle; and a clock of the tests' own."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from workers.training import loop as loop_module
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks


@pytest.mark.faults
def test_a_killed_run_resumes_to_the_same_model_bit_for_bit(make_spec, run_child):
    whole = run_child(make_spec("whole", steps=80))
    spec = make_spec("killed", steps=80)
    first = run_child(spec, stop_when=lambda step: step == 37, module="tests.workers.training.held", HELD_AT="37")
    assert first.returncode < 0 and not spec.output_folder.exists()

    second = run_child(spec)

    (note,) = [e for e in second.of("note") if "Resumed" in e["message"]]
    assert (note["step"], note["message"]) == (30, "Resumed from step 30.")
    assert second.of("step")[0]["step"] == 31
    assert {**first.losses, **second.losses} == whole.losses
    for key in ("loss", "steps", "tokens", "expert_load", "expert_domain", "specialisation", "expert_load_max_over_mean"):
        assert second.result[key] == whole.result[key], key
    ours, theirs = load_file(spec.output_folder / "model.safetensors"), load_file(make_spec("whole").output_folder / "model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_resumed_run_with_minutes_does_only_the_rest(make_spec, monkeypatch, capsys):
    """By a clock on which a step takes a second."""
    spec, now = make_spec("timed", steps=None, minutes=1.0, checkpoint_every_seconds=600), [0.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def run(killed_after: int | None) -> Loop:
        alone = Ranks(0, 1, 1, torch.device("cpu"))
        loop = Loop(spec, alone, prepare(spec, alone))
        step, taken = loop.step, []

        def timed():
            if len(taken) == killed_after:
                raise KeyboardInterrupt
            taken.append(now[0])
            if killed_after and len(taken) == killed_after - 5:
                loop._save()
            now[0] += 1.0
            return step()

        loop.step = timed
        try:
            loop.run()
        except KeyboardInterrupt:
            now[0] += 1000.0  # in which nobody trains
        return loop

    assert run(killed_after=40).progress.elapsed == 40
    second = run(killed_after=None).progress
    assert (second.step, second.elapsed) == (60, 60.0)
    assert "Resumed from step 34" in capsys.readouterr().out
