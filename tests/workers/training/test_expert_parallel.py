"""Experts spread over two and four gloo ranks, against one rank with the same micro-batches."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from workers.training.loop import Loop
from workers.training.parts import share_of, whole
from workers.training.precision import Precision
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ALONE = Ranks(0, 1, 1, torch.device("cpu"))
# 32 experts of which one sees a token, two examples a micro-batch: there are experts, on each rank, that nobody is sent to.
JOB = {"steps": 8, "lr": 2e-3, "warmup": 0.25, "schedule": "constant", "micro_batch": 2}
# Sums over ranks are rounded in another order. AdamW keeps that small; Muon makes matrices orthogonal in BF16, where it grows.
TOLERANCE = {"adamw": 1e-5, "muon": 2e-3}


def one_step(spec, ranks: Ranks) -> tuple[float, float, list[list[float]], dict[str, np.ndarray]]:
    """Loss, norm of the gradients, load of the experts, and the gradients as the optimizer gets them, whole."""
    loop = Loop(spec, ranks, prepare(spec, ranks))
    step, kept = loop.precision.step, {}

    def keep(optimizer, model, clip_norm):
        answer = step(optimizer, model, clip_norm)
        for name, parameter in model.named_parameters():
            grad = parameter.grad.clone()
            if (share := share_of(parameter)) is not None:
                grad.expert_share = share
            kept[name] = whole(grad).numpy()  # a tensor would be shared memory of a process that ends
        return answer

    loop.precision.step = keep
    outcome = loop.step()
    return outcome.loss, outcome.grad_norm, loop.progress.recent_load, kept


@pytest.mark.parametrize(("size", "spread", "changes"), [
    (2, 2, {}),
    (4, 2, {"zero_stage": 1, "router": "sigmoid", "activation_checkpointing": True}),
    (2, 2, {"model": {"d_expert": 8, "n_experts": 4, "top_k": 3, "n_shared_experts": 1, "first_dense_layers": 1, "d_dense": 16, "router": "sigmoid"},
            "router": "sigmoid"}),
], ids=["idle experts", "two copies of each", "shared and dense"])  # fmt: skip
def test_gradients_norm_and_load_are_those_of_one_rank(make_spec, tiny, on_ranks, size, spread, changes):
    common = {**JOB, **changes, "model": tiny | changes.get("model", {}), "clip_norm": 0.05}  # less than their norm: they are clipped
    loss, norm, load, expected = one_step(make_spec("alone", **{**common, "zero_stage": 0}, accum_steps=4), ALONE)
    spec = make_spec("ranks", **common, accum_steps=4 // size, world_size=size, expert_parallel_size=spread)

    answers = on_ranks(size, lambda ranks: one_step(spec, ranks))

    assert norm > 0.05
    if "model" not in changes:
        assert any(0.0 in row for row in load)
    for answer in answers:
        assert answer[0] == pytest.approx(loss, rel=1e-5) and answer[1] == pytest.approx(norm, rel=1e-5)
        assert answer[2] == load
        for name, gradient in expected.items():
            np.testing.assert_allclose(answer[3][name], gradient, atol=1e-7, rtol=1e-4, err_msg=name)


def test_a_run_ends_with_the_weights_of_one_rank(make_spec, run_child):
    job = {**JOB, "ema_decay": 0.9, "sample_every_seconds": 1e-3, "evaluate_every_seconds": 1e-3}
    alone = make_spec("alone", accum_steps=4, **job)
    expected = run_child(alone)
    spec = make_spec("ranks", accum_steps=2, world_size=2, expert_parallel_size=2, zero_stage=1, threads=2, **job)

    child = run_child(spec)

    assert child.losses == pytest.approx(expected.losses, rel=TOLERANCE["muon"])
    assert child.result["total_parameters"] == expected.result["total_parameters"]
    assert child.of("sample") and all(e["loss"] > 0 for e in child.of("evaluation"))
    weights = load_file(spec.output_folder / "model.safetensors")
    for name, tensor in load_file(alone.output_folder / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=20 * TOLERANCE["muon"], rtol=1e-3)


def go_on(spec, ranks: Ranks, steps: int) -> list[float]:
    loop = Loop(spec, ranks, prepare(spec, ranks))
    if before := loop.checkpoints.load(loop.model, loop.optimizer, loop.precision):
        loop._take_up(before)
    losses = [loop.step().loss for _ in range(steps)]
    loop._save()
    return losses


def test_a_checkpoint_is_taken_up_by_other_sizes_and_stages(make_spec, on_ranks):
    job = {**JOB, "optimizer": "adamw", "ema_decay": 0.9}
    starts = [(2, 0, 2), (4, 1, 2), (1, 0, 1), (2, 1, 2)]  # ranks, stage, expert_parallel_size
    expected = go_on(make_spec("whole", accum_steps=4, **job), ALONE, 8)

    losses = []
    for size, stage, spread in starts:
        spec = make_spec("moved", accum_steps=4 // size, world_size=size, zero_stage=stage, expert_parallel_size=spread, **job)
        losses += on_ranks(size, lambda ranks, spec=spec: go_on(spec, ranks, 2))[0] if size > 1 else go_on(spec, ALONE, 2)

    assert losses == pytest.approx(expected, rel=TOLERANCE["adamw"])


def test_each_expert_is_written_once(make_spec, on_ranks):
    spec = make_spec("copies", **JOB, world_size=4, expert_parallel_size=2)
    on_ranks(4, lambda ranks: go_on(spec, ranks, 1))

    (folder,) = (spec.work_folder / "checkpoints").glob("*1")
    files = [load_file(folder / f"rank{rank}.safetensors") for rank in range(4)]

    held = [{name: tensor.shape[0] for name, tensor in file.items() if ".experts.down" in name} for file in files]
    assert held[0] and set(held[0].values()) == {16} and held[0] == held[1] and held[2] == held[3] == {}
    assert json.loads((folder / "progress.json").read_text())["files"] == 4


def test_an_overflow_on_one_rank_skips_the_step_on_all(on_ranks, make_spec, tiny):
    spec = make_spec("fp16", **JOB, precision="fp16", world_size=2, expert_parallel_size=2)

    def overflow(ranks: Ranks) -> tuple[bool, float, float]:
        precision = Precision("fp16", ranks.device, differs=True)
        loop = Loop(spec, ranks, prepare(spec, ranks))
        scale = precision.loss_scale
        loop.precision = precision
        average = precision.step

        def step(optimizer, model, clip_norm):
            if ranks.rank == 1:
                model.blocks[0].feed_forward.experts.down.grad[3, 0, 0] = torch.inf
            return average(optimizer, model, clip_norm)

        precision.step = step
        before = [p.clone() for p in loop.model.parameters()]
        taken = loop.step().taken
        moved = max(float((p - b).abs().max()) for p, b in zip(loop.model.parameters(), before, strict=True))
        return taken, precision.loss_scale / scale, moved

    assert on_ranks(2, overflow) == [(False, 0.5, 0.0)] * 2


def test_adapters_are_spread_with_their_experts(make_spec, on_ranks, parent):
    job = {**JOB, "lora": {"rank": 2, "alpha": 4.0}, "parent_folder": parent, "model": None, "optimizer": "adamw"}
    loss, norm, _, expected = one_step_of_adapters(make_spec("alone", **job, accum_steps=2), ALONE)
    spec = make_spec("ranks", **job, world_size=2, expert_parallel_size=2)

    answers = on_ranks(2, lambda ranks: one_step_of_adapters(spec, ranks))

    for answer in answers:
        assert answer[:2] == pytest.approx((loss, norm), rel=1e-5)
        assert answer[2] == 16  # of 32 experts
    (merged,) = (answer[3] for answer in answers if answer[3])  # on the first rank
    for name, tensor in expected.items():
        np.testing.assert_allclose(merged[name], tensor, atol=1e-6, rtol=1e-4, err_msg=name)


def one_step_of_adapters(spec, ranks: Ranks) -> tuple[float, float, int, dict[str, np.ndarray]]:
    from workers.training.telling import gather

    loop = Loop(spec, ranks, prepare(spec, ranks))
    outcome = loop.step()
    merged = gather(loop.model, ranks)
    held = next(p for name, p in loop.model.named_parameters() if "experts" in name and "lora_A" in name).shape[0]
    return outcome.loss, outcome.grad_norm, held, {n: t.detach().numpy() for n, t in merged.state_dict().items()} if merged else {}


@pytest.mark.parametrize(("changes", "message"), [
    ({"world_size": 2, "zero_stage": 2}, "expert_parallel_size 2 goes with zero_stage 0 and 1: stage 2"),
    ({"world_size": 3}, r"world_size \(3\) must be a multiple of expert_parallel_size \(2\)"),
    ({"world_size": 2, "model": {"n_experts": 3}}, "the 3 experts of this model cannot be spread evenly over expert_parallel_size 2"),
    ({"world_size": 2, "model": {"n_experts": 0, "top_k": 0, "d_dense": 8}}, "the 0 experts of this model"),
])  # fmt: skip
def test_what_cannot_be_spread_is_refused_and_says_which_fields_disagree(make_spec, tiny, changes, message):
    with pytest.raises(ValidationError, match=message):
        make_spec(**changes | {"expert_parallel_size": 2, "model": tiny | changes.get("model", {})})
