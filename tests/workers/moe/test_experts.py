import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from workers.moe.config import ModelConfig
from workers.moe.experts import Experts
from workers.moe.grouped import Collect, Dispatch, Places

CONFIG = ModelConfig(vocab_size=8, d_model=12, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_expert=10, n_experts=5, top_k=2)


def naive(x, ids, weights, gate_up, down):
    """One token and one expert at a time, as the formula is written."""
    rows = []
    for token in range(x.shape[0]):
        row = torch.zeros(x.shape[1], dtype=x.dtype)
        for slot in range(ids.shape[1]):
            expert = ids[token, slot]
            gate, up = (x[token] @ gate_up[expert]).chunk(2)
            row = row + weights[token, slot] * ((F.silu(gate) * up) @ down[expert])
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("idle_expert", [False, True])
def test_experts_equal_a_naive_loop_forward_and_backward(idle_expert):
    torch.manual_seed(0)
    experts = Experts(CONFIG).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(17, 12, dtype=torch.float64)
    ids = torch.stack([torch.randperm(4 if idle_expert else 5)[:2] for _ in range(17)])
    weights = torch.rand(17, 2, dtype=torch.float64)
    results = []
    for run in (lambda x, w: experts(x, ids, w), lambda x, w: naive(x, ids, w, experts.gate_up, experts.down)):
        experts.zero_grad()
        x_in, w_in = x.clone().requires_grad_(), weights.clone().requires_grad_()
        out = run(x_in, w_in)
        out.pow(2).sum().backward()
        results.append([out.detach(), x_in.grad, w_in.grad, experts.gate_up.grad.clone(), experts.down.grad.clone()])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)
    if idle_expert:
        assert not results[0][3][4].any()  # zero, not missing


@pytest.mark.parametrize("step", [1, 4])
def test_rows_that_were_sorted_by_expert_are_collected_where_they_came_from(step):
    ids = torch.tensor([[2], [0], [3], [2], [0]])  # 3 is nobody
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    places = Places.of(ids, 3, step)

    def there_and_back(x):
        return Collect.apply(Dispatch.apply(x, places), places)

    torch.testing.assert_close(there_and_back(x), x * torch.tensor([1, 1, 0, 1, 1]).unsqueeze(1))
    assert torch.autograd.gradcheck(there_and_back, x)
    nobody = Places.of(ids[:0], 3, step)
    assert Collect.apply(Dispatch.apply(x[:0], nobody), nobody).shape == (0, 4)


def test_frozen_experts_have_no_gradient_and_pass_the_same_one_on():
    torch.manual_seed(0)
    experts = Experts(CONFIG).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x, ids, weights = torch.randn(9, 12, dtype=torch.float64), torch.randint(0, 5, (9, 2)), torch.rand(9, 2, dtype=torch.float64)
    passed = []
    for frozen in (False, True):
        experts.requires_grad_(not frozen).zero_grad()
        x_in = x.clone().requires_grad_()
        made = []
        with Counted(made):
            experts(x_in, ids, weights).sum().backward()
        passed.append((x_in.grad, len(made)))
    torch.testing.assert_close(passed[1][0], passed[0][0], atol=0, rtol=0)
    used = len(ids.unique())
    assert (experts.gate_up.grad, passed[0][1] - passed[1][1]) == (None, 2 * CONFIG.n_experts)  # products that nobody would have read
    assert passed[1][1] == 2 * 2 * used


class Counted(TorchDispatchMode):
    """Keeps the matrix products."""

    def __init__(self, made: list):
        super().__init__()
        self.made = made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.out:
            self.made.append(args)
        return func(*args, **(kwargs or {}))
