"""Number formats of a run: FP32, BF16 by autocast, FP16 by autocast with dynamic loss scaling."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workers.training.expert_parallel import gradient_norm
from workers.training.parts import whole

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Weights and optimizer state stay FP32; products run in the format.

    FP16 holds nothing below 6e-8, where most gradients lie, so the loss is multiplied by a scale first (Micikevicius 2018 §3.2):
    one that overflows skips the step and halves the scale, which doubles again after `growth_interval` good steps.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device, growth_interval: int = 2000, differs: bool = False):
        """`differs`: gradients are not the same on all ranks, so that one may overflow alone; all must then skip the step."""
        self._device = device.type
        self._dtype = _DTYPES.get(name)
        self.scaler = _scaler_of(differs and name == "fp16")(device.type, enabled=name == "fp16", growth_interval=growth_interval)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._dtype is None else torch.autocast(self._device, self._dtype)

    @property
    def scales(self) -> bool:
        return self.scaler.is_enabled()

    @property
    def loss_scale(self) -> float:
        return float(self.scaler.get_scale())

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, model: nn.Module, clip_norm: float) -> tuple[float, bool]:
        """Clip and step. Returns the gradients' norm before clipping, and whether the step was taken: a non-finite norm takes none."""
        self.scaler.unscale_(optimizer)
        norm = gradient_norm(model)
        nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
        full = float(whole(norm))
        finite = math.isfinite(full)
        if self.scales:
            self.scaler.step(optimizer)  # skips by itself
        elif finite:
            optimizer.step()
        self.scaler.update()
        return full, finite


def _scaler_of(differs: bool) -> type[torch.amp.GradScaler]:
    if not differs:
        return torch.amp.GradScaler
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # here, because it takes a second

    return ShardedGradScaler
