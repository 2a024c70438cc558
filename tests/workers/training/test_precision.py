import pytest
import torch

from workers.training.precision import Precision


def one_weight() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def test_an_fp16_overflow_skips_the_step_and_halves_the_scale_which_doubles_again_later():
    precision = Precision("fp16", torch.device("cpu"), growth_interval=2)
    model, optimizer = one_weight()
    start = precision.loss_scale
    precision.backward(model.weight.sum() * torch.inf)
    norm, taken = precision.step(optimizer, model, clip_norm=1.0)
    assert not taken and precision.loss_scale == start / 2
    assert model.weight.item() == 1.0
    for _ in range(2):
        optimizer.zero_grad()
        precision.backward(model.weight.sum() * 0.25)
        norm, taken = precision.step(optimizer, model, clip_norm=1.0)
    assert taken and norm == pytest.approx(0.25)  # of the gradients as they are, not scaled
    assert model.weight.item() == pytest.approx(0.5)
    assert precision.loss_scale == start


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_without_a_scale_gradients_that_are_not_finite_take_no_step(name):
    precision = Precision(name, torch.device("cpu"))
    model, optimizer = one_weight()
    precision.backward(model.weight.sum() * torch.nan)
    _, taken = precision.step(optimizer, model, clip_norm=1.0)
    assert not taken and model.weight.item() == 1.0 and precision.loss_scale == 1.0


def test_gradients_are_clipped_to_the_norm():
    precision = Precision("fp32", torch.device("cpu"))
    model, optimizer = one_weight()
    precision.backward(model.weight.sum() * 8)
    norm, _ = precision.step(optimizer, model, clip_norm=0.5)
    assert norm == 8.0 and model.weight.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_run_in_the_format(name, dtype):
    with Precision(name, torch.device("cpu")).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
