"""The image front end of a model folder (`workers.moe.vision`), in numpy: a picture becomes rows that take the place of tokens."""

from itertools import count, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from workers.engine.errors import UnusableModel
from workers.moe import VISION_FILE, pixels_of

Rows = NDArray[np.float32]
Kernel = tuple[Rows, Rows]  # (outputs, inputs, 3, 3) and (outputs,)


class FrontEnd:
    """`tokens`: how many of the sequence a picture takes."""

    def __init__(self, stem: list[Kernel], weight: Rows, bias: Rows, position: Rows, image_size: int, patch_size: int):
        self._stem, self._weight, self._bias, self._position = stem, weight, bias, position
        self._size, self._side = image_size, image_size // patch_size
        self.tokens = len(position)

    def rows(self, picture: str) -> Rows:
        """(tokens, d_model) float32 of a picture, given as in a record. BadPicture."""
        seen = pixels_of(picture, self._size).astype(np.float32) / np.float32(127.5) - 1
        for number, kernel in enumerate(self._stem):
            seen = _convolved(seen, kernel, stride=2 if number else 1)
        side, places = self._side, len(seen) // self._side
        cut = seen.reshape(side, places, side, places, -1).transpose(0, 2, 1, 3, 4).reshape(side * side, -1)
        return np.ascontiguousarray(cut @ self._weight.T + self._bias + self._position, np.float32)


def _convolved(seen: Rows, kernel: Kernel, stride: int) -> Rows:
    """(rows, columns, inputs) → (rows / stride, columns / stride, outputs), no less than zero."""
    weight, bias = kernel
    padded = np.pad(seen, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[::stride, ::stride]  # rows, columns, inputs, 3, 3
    return np.maximum(windows.reshape(*windows.shape[:2], -1) @ weight.reshape(len(weight), -1).T + bias, 0)


def read_front_end(folder: Path, d_model: int) -> FrontEnd | None:
    """None for a model of text. UnusableModel where the file is damaged or of another model."""
    file = folder / VISION_FILE
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            names = opened.keys()
            tensors = {name: opened.get_tensor(name).astype(np.float32) for name in names}
            image_size, patch_size = (int(opened.metadata()[name]) for name in ("image_size", "patch_size"))
        layers = takewhile(lambda number: f"vision.stem.{number}.weight" in tensors, count())
        stem = [(tensors[f"vision.stem.{n}.weight"], tensors[f"vision.stem.{n}.bias"]) for n in layers]
        weight, bias, position = (tensors[f"vision.{name}"] for name in ("patch.weight", "patch.bias", "position"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnusableModel(f"The {VISION_FILE} of {folder.name} is damaged: {error}.") from error
    patches = (image_size // max(patch_size, 1)) ** 2
    inputs = _channels(stem) * (patch_size // 2 ** max(0, len(stem) - 1)) ** 2
    if weight.shape != (d_model, inputs) or bias.shape != (d_model,) or position.shape != (patches, d_model) or image_size % patch_size:
        raise UnusableModel(f"The {VISION_FILE} of {folder.name} is not that of its model.")
    return FrontEnd(stem, weight, bias, position, image_size, patch_size)


def _channels(stem: list[Kernel]) -> int:
    """How many the patches are cut from; 0, which fits no patch, where the convolutions do not follow each other."""
    channels = 3
    for weight, bias in stem:
        if weight.shape[1:] != (channels, 3, 3) or bias.shape != weight.shape[:1]:
            return 0
        channels = len(weight)
    return channels
