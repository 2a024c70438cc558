import pytest
import torch
from torch.nn.utils import prune as reference

from workers.compression import magnitude, sparse
from workers.compression.measure import weight_bytes
from workers.compression.prune import run_prune
from workers.moe import load_model
from workers.protocol import JobError


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
    narrow = magnitude.without_units(any_model, 0.5)
    zeroed = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    for prefix, (gate_up, down) in magnitude.networks(any_model).items():
        lost = magnitude.unit_importance(gate_up, down).argsort(-1)[..., : down.shape[-2] // 2]
        zeroed[f"{prefix}.down"].scatter_(-2, lost.unsqueeze(-1).expand(*lost.shape, down.shape[-1]), 0.0)
    tokens = torch.randint(0, any_model.config.vocab_size, (2, 20))
    with torch.inference_mode():
        found = narrow(tokens)
        any_model.load_state_dict(zeroed)
        wanted = any_model(tokens)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in any_model.parameters())


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
    assert magnitude.sparsity_of(pruned)[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "Give a threshold"),
        ({"threshold": 50.0}, "no weight is left"),
        ({"threshold": 1e-9, "structure": "neuron"}, "no hidden unit is below"),
        ({"sparsity": 0.001, "structure": "neuron"}, "removes not one of"),
        ({"sparsity": 0.5, "steps": 2}, "no text to learn from"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(make_model, save, spec, options, says):
    with pytest.raises(JobError, match=says):
        run_prune(spec("prune", save(make_model()), **options))
