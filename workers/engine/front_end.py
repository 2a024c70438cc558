"""The image front end of a model folder (`workers.moe.vision`), in numpy: a picture becomes rows that take the place of tokens."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from workers.engine.errors import UnusableModel
from workers.moe import VISION_FILE, pixels_of

Rows = NDArray[np.float32]


class FrontEnd:
    """`tokens`: how many of the sequence a picture takes."""

    def __init__(self, weight: Rows, bias: Rows, position: Rows, image_size: int, patch_size: int):
        self._weight, self._bias, self._position = weight, bias, position
        self._size, self._patch = image_size, patch_size
        self.tokens = len(position)

    def rows(self, picture: str) -> Rows:
        """(tokens, d_model) float32 of a picture, given as in a record. BadPicture."""
        side, patch = self._size // self._patch, self._patch
        cut = pixels_of(picture, self._size).reshape(side, patch, side, patch, 3).transpose(0, 2, 1, 3, 4).reshape(side * side, -1)
        return np.ascontiguousarray((cut.astype(np.float32) / np.float32(127.5) - 1) @ self._weight.T + self._bias + self._position, np.float32)


def read_front_end(folder: Path, d_model: int) -> FrontEnd | None:
    """None for a model of text. UnusableModel where the file is damaged or of another model."""
    file = folder / VISION_FILE
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            weight, bias, position = (opened.get_tensor(f"vision.{name}").astype(np.float32) for name in ("patch.weight", "patch.bias", "position"))
            image_size, patch_size = (int(opened.metadata()[name]) for name in ("image_size", "patch_size"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnusableModel(f"The {VISION_FILE} of {folder.name} is damaged: {error}.") from error
    patches = (image_size // max(patch_size, 1)) ** 2
    if weight.shape != (d_model, 3 * patch_size**2) or bias.shape != (d_model,) or position.shape != (patches, d_model) or image_size % patch_size:
        raise UnusableModel(f"The {VISION_FILE} of {folder.name} is not that of its model.")
    return FrontEnd(weight, bias, position, image_size, patch_size)
