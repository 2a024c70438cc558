"""An INT8 model in PyTorch, for GPUs: `torch._int_mm` multiplies int8 with int8 on their tensor cores, rows rounded at run time as on a CPU.

The decoder, its slots and its attention are those of `workers.engine.torch_runner`; only the matrices are other modules.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workers.compression.int8_folder import Pair, StoredModel, read_folder
from workers.compression.quantization import LARGEST
from workers.engine.torch_runner import TorchRunner
from workers.moe import Decoder
from workers.moe.experts import Experts, gated

LEAST_ROWS = 32  # what `_int_mm` takes on a GPU: more than 16 rows, and multiples of 8 of everything else
MULTIPLE = 8


class Int8Matrix(nn.Module):
    """`x @ W` for W of 8 bits. Buffers: `weight` (inputs, outputs) int8, filled up to multiples of MULTIPLE, and `scale` (outputs,)."""

    def __init__(self, pair: Pair):
        super().__init__()
        weight, scale = (_tensor(array) for array in pair)
        self.outputs, inputs = weight.shape
        filled = F.pad(weight, (0, -inputs % MULTIPLE, 0, -self.outputs % MULTIPLE))
        self.register_buffer("weight", filled.T)  # a view: column by column is how the kernel wants it
        self.register_buffer("scale", scale.float())

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (…, inputs) → (…, outputs), in the type of `x`."""
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        rows = x.reshape(-1, x.shape[-1]).float()
        step = rows.abs().amax(-1, keepdim=True) / LARGEST
        rounded = (rows / step.clamp_min(1e-30)).round().to(torch.int8)
        rounded = F.pad(rounded, (0, len(weight) - x.shape[-1], 0, max(LEAST_ROWS - len(rows), -len(rows) % MULTIPLE)))
        sums = torch._int_mm(rounded, weight)[: len(rows), : self.outputs]
        return (sums.float() * (step * scale)).to(x.dtype).unflatten(0, x.shape[:-1])


class Int8Embedding(nn.Module):
    def __init__(self, pair: Pair):
        super().__init__()
        weight, scale = (_tensor(array) for array in pair)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.float().unsqueeze(-1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.get_buffer("weight")[tokens].float() * self.get_buffer("scale")[tokens]


class Int8Network(nn.Module):
    """SwiGLU, as `DenseNetwork`."""

    def __init__(self, pairs: tuple[Pair, Pair]):
        super().__init__()
        self.gate_up, self.down = Int8Matrix(pairs[0]), Int8Matrix(pairs[1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(gated(self.gate_up(x)))
        return out


class Int8Experts(Experts):
    def __init__(self, networks: list[tuple[Pair, Pair]]):
        nn.Module.__init__(self)  # the stacked matrices of `Experts` are not made
        self.n_experts = len(networks)
        self.networks = nn.ModuleList(Int8Network(pairs) for pairs in networks)

    def answers(self, rows: Tensor, counts: list[int]) -> Tensor:
        parts = zip(self.networks, rows.split(counts), strict=True)
        return torch.cat([network(part) for network, part in parts if len(part)])


def build(stored: StoredModel) -> Decoder:
    """The decoder over the folder's own int8: at no time is it all there in FP32."""
    config = stored.config
    with torch.device("meta"):
        model = Decoder(config.with_(image_size=0))
    model.embedding = Int8Embedding(stored.embedding)  # type: ignore[assignment]
    model.head = Int8Matrix(stored.head)  # type: ignore[assignment]
    model.norm.weight = _parameter(stored.norm)
    blocks: list[Any] = list(model.blocks)
    for block, layer in zip(blocks, stored.layers, strict=True):
        block.attention_norm.weight, block.feed_forward_norm.weight = _parameter(layer.attention_norm), _parameter(layer.feed_forward_norm)
        block.attention.qkv, block.attention.out = Int8Matrix(layer.qkv), Int8Matrix(layer.out)
        network, read = block.feed_forward, layer.feed_forward
        if read.router is None:
            network.dense = Int8Network(read.networks[0])
            continue
        network.router.weight = _parameter(read.router[0])
        bias = _tensor(read.router[1]).float()
        network.router.bias = nn.Parameter(bias, requires_grad=False) if "bias" in network.router._parameters else bias
        network.experts = Int8Experts(read.networks)
        if read.shared is not None:
            network.shared = Int8Network(read.shared)
    model.rebuild_tables()
    return model.eval()


def open_int8_torch_runner(folder: Path, device: str, *, threads: int, max_batch: int, max_seq_len: int) -> TorchRunner:
    """DamagedWeights."""
    torch.set_num_threads(threads)
    return TorchRunner(build(read_folder(folder)).to(device), max_batch, max_seq_len)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.copy())  # of its own, not of the file's mapping; contiguous


def _parameter(array: NDArray[Any]) -> nn.Parameter:
    return nn.Parameter(_tensor(array).float(), requires_grad=False)
