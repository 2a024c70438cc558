"""Real children, killed with SIGKILL in the middle."""

import pytest
from safetensors.torch import load_file

ENDLESSLY = {"checkpoint_every_seconds": 0.01, "sample_every_seconds": 600}


@pytest.mark.faults
def test_a_killed_run_resumes_to_the_same_model_bit_for_bit(make_spec, run_child, past_a_checkpoint):
    whole = run_child(make_spec("whole", steps=80, **ENDLESSLY))
    spec = make_spec("killed", steps=80, **ENDLESSLY)
    first = run_child(spec, stop_when=past_a_checkpoint(spec))
    assert first.returncode < 0 and not spec.output_folder.exists()

    second = run_child(spec)

    (note,) = [e for e in second.of("note") if "Resumed" in e["message"]]
    assert 0 < note["step"] < max(first.losses) and note["message"] == f"Resumed from step {note['step']}."
    assert second.of("step")[0]["step"] == note["step"] + 1
    assert {**first.losses, **second.losses} == whole.losses
    for key in ("loss", "steps", "tokens", "expert_load", "expert_domain", "specialisation", "expert_load_max_over_mean"):
        assert second.result[key] == whole.result[key], key
    ours, theirs = load_file(spec.output_folder / "model.safetensors"), load_file(make_spec("whole").output_folder / "model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.faults
def test_a_resumed_run_with_minutes_does_only_the_rest(make_spec, run_child, past_a_checkpoint):
    spec = make_spec("timed", steps=None, minutes=6 / 60, **ENDLESSLY)
    first = run_child(spec, stop_when=lambda step: step > 100 and past_a_checkpoint(spec)(step))
    second = run_child(spec)
    told = [e["elapsed"] for e in second.of("step")]
    assert told[0] > 0.3 * first.of("step")[-1]["elapsed"] and 6 <= told[-1] < 8
    assert 6 <= second.result["seconds"] < 8
    assert second.result["steps"] > 100
