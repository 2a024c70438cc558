"""Attention in blocks of queries against attention written out, and what it holds in memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workers.moe.attention import as_bias, attend_packed, slide
from workers.moe.blockwise import BLOCK, attend_in_blocks

LENGTH = 2 * BLOCK + 45

# Window, sinks, tokens in the cache before, and whether rows are packed with documents of their own.
CASES = {
    "sinks": (0, True, 0, False),
    "a window": (50, False, 0, False),
    "sinks and a window wider than a block": (BLOCK + 30, True, 0, False),
    "sinks and a window over a cache": (70, True, 90, False),
    "sinks in packed rows": (0, True, 0, True),
    "a window in packed rows": (60, False, 0, True),
}


def given(past: int, packed: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Queries, keys, values and sinks of four heads on two, that learn; and a mask."""
    generator = torch.Generator().manual_seed(3)
    shapes = (2, 4, LENGTH, 12), (2, 2, past + LENGTH, 12), (2, 2, past + LENGTH, 8), (4,)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    if not packed:
        return tensors, None
    owner = torch.stack([torch.arange(LENGTH) // 110, torch.arange(LENGTH) // 37])
    return tensors, (owner[:, :, None] == owner[:, None, :]).tril().unsqueeze(1)


@pytest.mark.parametrize("case", CASES)
def test_answers_and_gradients_are_those_of_attention_written_out(case):
    window, has_sinks, past, packed = CASES[case]
    (q, k, v, sinks), mask = given(past, packed)
    drain = sinks if has_sinks else None
    learnt = [q, k, v, *([sinks] if has_sinks else [])]
    towards = torch.randn(2, 4, LENGTH, 8, generator=torch.Generator().manual_seed(4))
    plain = attend_packed(q, k, v, as_bias(slide(mask, window, LENGTH, past, q.device)), 0.3, drain)
    expected = torch.autograd.grad(plain, learnt, towards)

    out = attend_in_blocks(q, k, v, mask, window, 0.3, drain)

    torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(out, learnt, towards), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=1e-4)


class Largest(TorchDispatchMode):
    """The most numbers that any operation's result held."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, tuple | list) else (out,):
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.numel())
        return out


@pytest.mark.parametrize("window", [0, 100])
def test_no_tensor_is_as_large_as_all_pairs_of_tokens(make_model, window):
    length = 8 * BLOCK
    gpt_oss = {"attention_sinks": True, "expert_bias": True, "swiglu_offset": 1.0, "swiglu_alpha": 1.702, "swiglu_limit": 7.0}
    slides = {"sliding_window": window, "sliding_layers": (0, 1)} if window else {}
    model = make_model(max_seq_len=length, **gpt_oss, **slides)
    tokens = torch.randint(0, 300, (1, length), generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        model(tokens, select=torch.tensor([length - 1])).sum().backward()
    assert largest.numbers <= 4 * length * BLOCK < length**2
    assert model.blocks[0].attention.sinks.grad.abs().max() > 0
