import math

import pytest
import torch
from torch.nn.utils import prune as reference

from workers.compression import magnitude, sparse, structure
from workers.compression.measure import weight_bytes
from workers.compression.prune import run_prune
from workers.compression.pruning_curve import Point, recommended
from workers.moe import load_model
from workers.protocol import JobError
from workers.training import encode, pack


def _nonzero(model) -> dict[str, int]:
    return {name: int(weight.count_nonzero()) for name, weight in magnitude.prunable(model).items()}


def test_a_threshold_zeroes_exactly_the_smaller_weights(make_model, save, spec):
    model = make_model()
    run_prune(made := spec("prune", save(model), threshold=0.1))
    pruned, _ = load_model(made.output_folder)
    for (name, before), after in zip(magnitude.prunable(model).items(), magnitude.prunable(pruned).values(), strict=True):
        assert torch.equal(after, torch.where(before.abs() < 0.1, 0.0, before)), name
    assert torch.equal(pruned.embedding.weight, model.embedding.weight)


def test_a_sparsity_prunes_what_torchs_global_l1_pruning_does(make_model):
    model = make_model()
    weights = magnitude.prunable(model)
    masks, _ = magnitude.smallest_share(weights, 0.6)
    modules = {name: torch.nn.Module() for name in weights}
    for name, module in modules.items():
        module.weight = torch.nn.Parameter(weights[name].clone())
    reference.global_unstructured([(module, "weight") for module in modules.values()], reference.L1Unstructured, amount=0.6)
    for name, module in modules.items():
        assert torch.equal(masks[name], module.weight_mask.bool()), name


def test_the_result_tells_the_measured_sparsity_and_the_file_is_smaller(make_model, save, spec):
    parent = save(make_model())
    result = run_prune(made := spec("prune", parent, sparsity=0.75))
    details = result["details"]
    assert details["sparsity"] == pytest.approx(0.75, abs=1e-3)
    assert weight_bytes(made.output_folder) == details["bytes_after"] < 0.6 * weight_bytes(parent)
    pruned, _ = load_model(made.output_folder)
    kept = sum(_nonzero(pruned).values()) / sum(w.numel() for w in magnitude.prunable(pruned).values())
    assert kept == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("shape", [(6, 12), (3, 8, 10), (5, 7)])
def test_two_of_every_four_inputs_stay_the_larger_ones(shape):
    weight = torch.randn(shape)
    (mask,) = magnitude.two_of_four({"x.weight" if len(shape) == 2 else "x.gate_up": weight}).values()
    rows, kept = (t if len(shape) == 2 else t.transpose(-1, -2) for t in (weight, mask))
    whole = rows.shape[-1] // 4 * 4
    groups, chosen = rows[..., :whole].unflatten(-1, (-1, 4)), kept[..., :whole].unflatten(-1, (-1, 4))
    assert (chosen.sum(-1) == 2).all()
    least_kept = groups.abs().masked_fill(~chosen, torch.inf).amin(-1)
    most_lost = groups.abs().masked_fill(chosen, 0).amax(-1)
    assert (least_kept >= most_lost).all()
    assert kept[..., whole:].all()


def test_removing_units_is_zeroing_them(any_model):
    narrow = structure.without_units(any_model, 0.5)
    zeroed = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    for prefix, (gate_up, down) in structure.networks(any_model).items():
        lost = structure.unit_importance(gate_up, down).argsort(-1)[..., : down.shape[-2] // 2]
        zeroed[f"{prefix}.down"].scatter_(-2, lost.unsqueeze(-1).expand(*lost.shape, down.shape[-1]), 0.0)
    tokens = torch.randint(0, any_model.config.vocab_size, (2, 20))
    with torch.inference_mode():
        found = narrow(tokens)
        any_model.load_state_dict(zeroed)
        wanted = any_model(tokens)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in any_model.parameters())


def test_the_smallest_of_each_matrix_go_where_it_is_asked_by_layer(make_model):
    weights = magnitude.prunable(make_model())
    for name, mask in magnitude.smallest_of_each(weights, 0.6).items():
        kept, lost = weights[name].abs()[mask], weights[name].abs()[~mask]
        assert len(lost) == round(0.6 * mask.numel())
        assert lost.max() <= kept.min()


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_without_experts_the_others_answer_as_if_the_router_never_chose_them(make_model, router):
    model = make_model(router=router, n_experts=6)
    fewer = structure.without_experts(model, 0.5)
    worth = structure.by_weight(model)
    assert fewer.config.n_experts == 3
    closed = model.state_dict()
    for layer in range(model.config.n_layers):
        prefix = f"blocks.{layer}.feed_forward"
        lost = worth[f"{prefix}.experts"].mean(-1).argsort()[:3]
        if router == "sigmoid":
            closed[f"{prefix}.router.bias"][lost] = -1e9
        else:
            closed[f"{prefix}.router.bias"][lost] = -torch.inf
    tokens = torch.randint(0, model.config.vocab_size, (2, 20))
    with torch.inference_mode():
        found = fewer(tokens)
        model.load_state_dict(closed)
        assert torch.allclose(found, model(tokens), atol=1e-4)


def test_use_counts_what_each_unit_says_weighted_by_its_experts_share(make_model, tokenizer, pairs):
    model = make_model(n_layers=1, n_experts=2, top_k=2)
    batch = pack(encode([{"question": q, "answer": a} for q, a in pairs[:4]], tokenizer, 96)[0])
    (worth,) = structure.by_use(model, [batch]).values()
    seen = []
    block = model.blocks[0].feed_forward
    hook = block.register_forward_pre_hook(lambda module, given: seen.append(given))
    with torch.no_grad():
        model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid)
        hook.remove()
        x, valid = seen[0]
        ids, shares = block.router(x, valid)
        gate, up = (x[valid] @ block.experts.gate_up[1]).chunk(2, -1)
        share = (shares[valid] * (ids[valid] == 1)).sum(-1, keepdim=True)
        wanted = ((torch.nn.functional.silu(gate) * up).abs() * share).sum(0) * block.experts.down[1].norm(dim=-1)
    torch.testing.assert_close(worth[1], wanted, rtol=1e-4, atol=1e-4)


def test_a_job_draws_the_curve_and_says_how_far_one_may_go(make_model, save, spec, dataset):
    made = spec("prune", save(make_model()), sparsity=0.5, structure="expert", dataset_folder=dataset, max_questions=4, max_bleu_loss=100.0)
    details = run_prune(made)["details"]
    curve = details["pruning_curve"]
    assert [point["sparsity"] for point in curve] == pytest.approx([0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])  # of four experts 0.1 is none
    assert curve[-1]["bytes"] < curve[0]["bytes"]
    assert details["recommended_sparsity"] == 0.9
    assert details["after"]["questions"] == 4


def test_the_recommended_sparsity_is_the_last_before_the_first_that_loses_too_much():
    points = [Point(sparsity, bleu, 1, 1.0) for sparsity, bleu in ((0.0, 90.0), (0.1, 89.5), (0.2, 88.0), (0.3, 90.0))]
    assert recommended(points, 1.0) == 0.1


def test_sparse_storage_gives_back_every_tensor():
    tensors = {"a": torch.randn(7, 9), "b": torch.randn(3, 5, 4), "c": torch.zeros(6)}
    tensors["b"][tensors["b"].abs() < 1] = 0
    stored, storage = sparse.encode(tensors)
    assert set(storage["shapes"]) == {"b", "c"}  # a has no zeros, and would grow
    decoded = sparse.decode(stored, storage)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())


def test_recovery_keeps_pruned_weights_at_zero(make_model, save, spec, dataset):
    result = run_prune(made := spec("prune", save(make_model()), sparsity=0.5, steps=3, dataset_folder=dataset))
    pruned, _ = load_model(made.output_folder)
    assert result["details"]["recovery_steps"] == 3
    assert math.isfinite(result["details"]["recovery"]["kl"])
    assert magnitude.sparsity_of(pruned)[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "Give a threshold"),
        ({"threshold": 50.0}, "no weight is left"),
        ({"threshold": 1e-9, "structure": "neuron"}, "no hidden unit is below"),
        ({"sparsity": 0.001, "structure": "neuron"}, "removes not one of"),
        ({"sparsity": 0.01, "structure": "expert"}, "removes not one of 4 experts"),
        ({"sparsity": 0.5, "structure": "neuron", "importance": "use"}, "no text to learn from"),
        ({"sparsity": 0.5, "steps": 2}, "no text to learn from"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(make_model, save, spec, options, says):
    with pytest.raises(JobError, match=says):
        run_prune(spec("prune", save(make_model()), **options))
