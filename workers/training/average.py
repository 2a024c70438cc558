"""An exponential moving average of the weights (Polyak and Juditsky 1992): what is published, where a run asks for it.

average ← d · average + (1 − d) · weights        d = min(decay, (1 + n) / (10 + n)) after n steps, so that the beginning is soon forgotten
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from workers.training.parts import part_of


class Average:
    """Of what is learnt, this rank's parts of it, FP32. Buffers are not averaged."""

    def __init__(self, model: nn.Module, decay: float):
        self._decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self.parts: dict[str, Tensor] = {name: part_of(p).detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """`steps`: those taken before this one."""
        if self.parts:
            decay = min(self._decay, (1 + steps) / (10 + steps))
            torch._foreach_lerp_(list(self.parts.values()), self._local(), 1 - decay)

    @torch.no_grad()
    def put_in(self) -> None:
        """Make it the model's weights."""
        if self.parts:
            torch._foreach_copy_(self._local(), list(self.parts.values()))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards, bit for bit."""
        own = [part.clone() for part in self._local()]
        self.put_in()
        try:
            yield
        finally:
            with torch.no_grad():
                if own:
                    torch._foreach_copy_(self._local(), own)

    def _local(self) -> list[Tensor]:
        return [part_of(parameter.detach()) for parameter in self._weights.values()]
