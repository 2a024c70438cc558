"""What PyTorch users would take in place of our INT8: the same decoder in PyTorch, its matrices quantized by `quantize_dynamic` or torchao.

Both replace `nn.Linear` only, so each expert is made two such layers first, and tokens go to them in the usual loop over experts.
"""

import copy
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workers.engine.torch_runner import TorchRunner
from workers.moe import Decoder
from workers.moe.experts import Experts, gated


class LinearExperts(nn.Module):
    """`Experts` with two `nn.Linear` for each."""

    def __init__(self, experts: Experts):
        super().__init__()
        self.gate_up = nn.ModuleList(_linear(matrix.T) for matrix in experts.gate_up.detach())
        self.down = nn.ModuleList(_linear(matrix.T) for matrix in experts.down.detach())

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            tokens, places = (ids == expert).nonzero(as_tuple=True)
            said = self.down[expert](gated(self.gate_up[expert](x[tokens])))
            out.index_add_(0, tokens, said * weights[tokens, places, None])
        return out


def _linear(weight: Tensor) -> nn.Linear:
    """`weight`: (outputs, inputs)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return layer


def _by_quantize_dynamic(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    return quantized


def _by_torchao(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


PEERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "PyTorch, FP32": lambda model: model,
    "`quantize_dynamic`": _by_quantize_dynamic,
    "torchao": _by_torchao,
}


def open_peer(model: Decoder, name: str, max_seq_len: int) -> tuple[TorchRunner, int]:
    """The runner, and the bytes of its weights as PyTorch saves them."""
    made = copy.deepcopy(model)
    for block in made.blocks:
        block.feed_forward.experts = LinearExperts(block.feed_forward.experts)
    made = PEERS[name](made)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    return TorchRunner(made, 32, max_seq_len), file.getbuffer().nbytes
