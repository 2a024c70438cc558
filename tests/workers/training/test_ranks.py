"""Two real gloo ranks under torchrun for each ZeRO stage, against one rank with the same global batch."""

import pytest
import torch
from safetensors.torch import load_file

from workers.moe import load_model

# The model of conftest has 32 experts of which one sees a token, and a micro-batch of two examples has fewer tokens than that:
# on each rank there are experts without any.
JOB = {"steps": 8, "lr": 2e-3, "warmup": 0.25, "sample_every_seconds": 1e-3, "schedule": "constant"}

# Sums over ranks are rounded in another order. AdamW keeps that small; Muon makes matrices orthogonal in BF16, where it grows.
TOLERANCE = {"adamw": 1e-5, "muon": 2e-3}


@pytest.fixture(scope="module")
def remembered():
    return {}


@pytest.fixture
def alone(make_spec, run_child, remembered):
    """What one rank does with an optimizer, run once for all tests of this file."""

    def of(optimizer: str) -> dict:
        if optimizer not in remembered:
            spec = make_spec("alone", accum_steps=4, optimizer=optimizer, **JOB)
            child = run_child(spec)
            weights = load_file(spec.output_folder / "model.safetensors")
            remembered[optimizer] = {"losses": child.losses, "weights": weights, "result": child.result}
        return remembered[optimizer]

    return of


@pytest.mark.parametrize(("stage", "optimizer"), [(0, "adamw"), (1, "adamw"), (2, "adamw"), (3, "adamw"), (1, "muon"), (3, "muon")])
def test_two_ranks_follow_the_loss_curve_of_one(make_spec, run_child, alone, stage, optimizer):
    expected = alone(optimizer)
    spec = make_spec("ranks", accum_steps=2, world_size=2, zero_stage=stage, optimizer=optimizer, threads=2, **JOB)

    child = run_child(spec)

    assert child.losses == pytest.approx(expected["losses"], rel=TOLERANCE[optimizer])
    assert [e["step"] for e in child.of("step")] == list(range(1, 9))  # the first rank speaks, the second does not
    assert child.result["tokens"] == expected["result"]["tokens"]
    weights = load_file(spec.output_folder / "model.safetensors")
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(weights[name], tensor, atol=20 * TOLERANCE[optimizer], rtol=1e-3)
    model, _ = load_model(spec.output_folder)
    assert sum(p.numel() for p in model.parameters()) == child.result["total_parameters"]
    assert child.of("sample")


@pytest.mark.faults
def test_a_sharded_run_resumes_after_all_its_ranks_were_killed(make_spec, run_child):
    spec = make_spec("killed", **{**JOB, "steps": 5000, "world_size": 2, "zero_stage": 3, "threads": 2, "sample_every_seconds": 600})
    first = run_child(spec, stop_when=lambda step: step == 15, module="tests.workers.training.held", HELD_AT="15")
    again = run_child(spec, stop_when=lambda step: step == 15)
    (note,) = [e for e in again.of("note") if "Resumed" in e["message"]]
    assert note["step"] == 10
    done_twice = range(11, 16)
    assert [again.losses[step] for step in done_twice] == pytest.approx([first.losses[step] for step in done_twice], rel=1e-6)


def test_a_run_started_with_other_ranks_than_it_wants_is_refused(make_spec, monkeypatch):
    from workers.protocol import JobError
    from workers.training.ranks import join

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(JobError, match="wants 2 ranks and was started with 3"):
        join(make_spec(world_size=2))


def test_ranks_meet_on_a_machine_whose_name_nobody_knows(make_spec, run_child, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import socket\nsocket.gethostname = socket.getfqdn = lambda *_: 'nobody-knows.invalid'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_child(make_spec("ranks", world_size=2, threads=2, steps=1)).result["steps"] == 1
