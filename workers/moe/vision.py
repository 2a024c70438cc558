"""The image front end: patches of a picture become rows of the sequence, in the place of the tokens that hold them free.

Parameters, stored in a file of their own beside the text part (`workers.moe.checkpoint`):

    vision.patch.weight / .bias     (d_model, 3 · patch_size²) / (d_model,), of a patch's pixels in row order, RGB together
    vision.position                 (patches, d_model), learned: where in the picture a patch is

A picture is `image_patches` tokens of the sequence; from there on text and picture go one way (ViT §3.1; LLaVA, Fuyu).
"""

import torch
from torch import Tensor, nn

from workers.moe.config import ModelConfig

POSITION_STD = 0.2  # about that of the patches' own rows at the start, so that neither drowns the other


class PatchEmbedding(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.patch_size, self.side = config.patch_size, config.image_size // config.patch_size
        self.patch = nn.Linear(3 * config.patch_size**2, config.d_model)
        self.position = nn.Parameter(torch.empty(config.image_patches, config.d_model))

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.patch.weight, 0.0, self.patch.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.patch.bias)
        nn.init.normal_(self.position, 0.0, POSITION_STD, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """`images`: (N, image_size, image_size, 3) uint8 → (N · patches, d_model), row by row of each picture."""
        count, side, patch = len(images), self.side, self.patch_size
        cut = images.view(count, side, patch, side, patch, 3).permute(0, 1, 3, 2, 4, 5).reshape(count, side * side, 3 * patch**2)
        rows = self.patch(cut.to(self.position.dtype) / 127.5 - 1.0) + self.position
        return rows.flatten(0, 1)

    def place(self, x: Tensor, images: Tensor | None, at: Tensor | None) -> Tensor:
        """`x`: (B, T, d_model), with the patches of `images` written over the rows `at`, indices into B · T in the patches' order.

        In training the weights take part even where there is no picture: a rank without gradients would keep the others waiting.
        """
        if images is None or at is None:
            if not self.training:
                return x
            images = torch.zeros(0, self.side * self.patch_size, self.side * self.patch_size, 3, dtype=torch.uint8, device=x.device)
            at = torch.zeros(0, dtype=torch.int64, device=x.device)
        return x.reshape(-1, x.shape[-1]).index_copy(0, at, self(images).to(x.dtype)).view_as(x)
