"""An INT8 model in PyTorch: on GPUs, and on a CPU for what the compiled decoder does not express (norms of queries, latent attention, sinks, …).

`torch._int_mm` multiplies int8 with int8, on a GPU by its tensor cores; rows are rounded at run time, as the compiled decoder does. The decoder,
its slots and its attention are those of `workers.engine.torch_runner`; only the matrices are other modules.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from workers.compression.int8_folder import DamagedWeights
from workers.compression.quantization import LARGEST, quantize, read_one
from workers.engine.torch_runner import TorchRunner, runner_of
from workers.moe import Decoder, ModelConfig, UnsupportedModel, import_each, layout_named
from workers.moe.experts import DenseNetwork, Experts, gated, gated_within
from workers.moe.shards import Shards

LEAST_ROWS = 32  # what `_int_mm` takes on a GPU: more than 16 rows, and multiples of 8 of everything else
MULTIPLE = 8

Activation = Callable[[Tensor], Tensor]


class Int8Matrix(nn.Module):
    """`x @ Wᵀ + b` for W of 8 bits. Buffers: `weight` (inputs, outputs) int8, filled up to multiples of MULTIPLE, `scale` and `bias` (outputs,)."""

    def __init__(self, matrix: Tensor):
        """`matrix`: (outputs, inputs). One that was rounded before is rounded to the same numbers again."""
        super().__init__()
        weight, scale = quantize(matrix)
        self.outputs, inputs = weight.shape
        filled = F.pad(weight, (0, -inputs % MULTIPLE, 0, -self.outputs % MULTIPLE))
        self.register_buffer("weight", filled.T)  # a view: column by column is how the kernel wants it
        self.register_buffer("scale", scale[:, 0].float())
        self.bias: Tensor | None
        self.register_buffer("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (…, inputs) → (…, outputs), in the type of `x`."""
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        rows = x.reshape(-1, x.shape[-1]).float()
        step = rows.abs().amax(-1, keepdim=True) / LARGEST
        rounded = (rows / step.clamp_min(1e-30)).round().to(torch.int8)
        more = max(LEAST_ROWS - len(rows), -len(rows) % MULTIPLE) if x.is_cuda else 0
        rounded = F.pad(rounded, (0, len(weight) - x.shape[-1], 0, more))
        sums = torch._int_mm(rounded, weight)[: len(rows), : self.outputs]
        out = sums.float() * (step * scale)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).unflatten(0, x.shape[:-1])


class Int8Embedding(nn.Module):
    def __init__(self, matrix: Tensor):
        super().__init__()
        weight, scale = quantize(matrix)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.float())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.get_buffer("weight")[tokens].float() * self.get_buffer("scale")[tokens]


class Int8Network(nn.Module):
    """SwiGLU, as `DenseNetwork`."""

    def __init__(self, activation: Activation = gated):
        super().__init__()
        self.activation = activation
        self.gate_up: nn.Module
        self.down: nn.Module

    def take(self, name: str, tensor: Tensor) -> None:
        """A matrix (inputs, outputs), or the bias of one that was taken before."""
        if name.endswith("_bias"):
            getattr(self, name.removesuffix("_bias")).bias = tensor.float()
        else:
            setattr(self, name, Int8Matrix(tensor.T))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.gate_up(x)))
        return out


class Int8Experts(Experts):
    def __init__(self, experts: Experts):
        nn.Module.__init__(self)  # the stacked matrices of `Experts` are not made
        alpha, limit, offset = experts.shape
        activation = gated if experts.plain else partial(gated_within, alpha=alpha, limit=limit, offset=offset)
        self.n_experts = experts.n_experts
        self.networks = nn.ModuleList(Int8Network(activation) for _ in range(self.n_experts))

    def take(self, name: str, tensor: Tensor) -> None:
        """`tensor`: of all experts."""
        networks: list[Any] = list(self.networks)
        for network, part in zip(networks, tensor, strict=True):
            network.take(name, part)

    def answers(self, rows: Tensor, counts: list[int]) -> Tensor:
        parts = zip(self.networks, rows.split(counts), strict=True)
        return torch.cat([network(part) for network, part in parts if len(part)])


def build(folder: Path) -> Decoder:
    """The decoder over the folder's own int8: at no time is more than one of its tensors in FP32. DamagedWeights."""
    try:
        described = json.loads((folder / "config.json").read_text())
        config = ModelConfig.from_dict(described["storage"]["model"])
        with torch.device("meta"):
            model = Decoder(config.with_(image_size=0))
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, Experts | DenseNetwork):
                    setattr(module, name, Int8Experts(child) if isinstance(child, Experts) else Int8Network())
        layout, read = layout_named(described["model_type"]), partial(read_one, Shards(folder), described["storage"])
        for name, tensor in import_each(layout, config, described, read, lambda entry: torch.empty(entry.shape)):
            _place(model, name, tensor)
            if name == "embedding.weight" and config.tie_embeddings:
                _place(model, "head.weight", tensor)
    except FileNotFoundError as error:
        raise DamagedWeights(f"{folder.name} has no {Path(error.filename or 'model.safetensors').name}.") from error
    except (SafetensorError, UnsupportedModel, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedWeights(f"The weights of {folder.name} are damaged: {error}.") from error
    model.rebuild_tables()
    return model.eval()


def _place(model: Decoder, name: str, tensor: Tensor) -> None:
    """Put one tensor, under our decoder's name for it, where it belongs."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, Int8Experts | Int8Network):
        module.take(leaf, tensor)
    elif isinstance(module, nn.Embedding | nn.Linear) and leaf == "weight" and not path.endswith("kv_up"):  # which latent attention splits
        model.set_submodule(path, (Int8Embedding if isinstance(module, nn.Embedding) else Int8Matrix)(tensor))
    elif leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def open_int8_torch_runner(folder: Path, device: str, *, threads: int, max_batch: int, max_seq_len: int) -> TorchRunner:
    """DamagedWeights."""
    torch.set_num_threads(threads)
    return runner_of(build(folder).to(device), max_batch, max_seq_len)
