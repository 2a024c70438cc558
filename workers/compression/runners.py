"""Which compressed folders have a runner of their own (`workers.engine.runner`)."""

import json
from pathlib import Path
from typing import Any

from workers.engine import Runner, UnusableModel
from workers.moe import ModelConfig

ONNX_FILE = "model.onnx"


def open_runner(folder: Path, *, threads: int, max_batch: int, max_seq_len: int, device: str = "cpu") -> Runner | None:
    """The runner of an INT8 or ONNX folder; None for one whose weights are just stored in another way. UnusableModel.

    `device`: on a CPU, INT8 that the compiled decoder does not express runs in PyTorch.
    """
    if (folder / ONNX_FILE).exists():
        from workers.compression.onnx_runner import open_onnx_runner

        return open_onnx_runner(folder, threads=threads, max_batch=max_batch, max_seq_len=max_seq_len, device=device)
    if (storage := _storage(folder)).get("format") == "int8":
        from workers.compression.int8_folder import DamagedWeights

        try:
            if device != "cpu" or _is_special(storage):
                from workers.compression.int8_torch import open_int8_torch_runner

                return open_int8_torch_runner(folder, device, threads=threads, max_batch=max_batch, max_seq_len=max_seq_len)
            from workers.compression.int8_runner import Int8Runner
            from workers.compression.int8_weights import read_weights

            return Int8Runner(read_weights(folder), threads=threads, max_batch=max_batch, max_seq_len=max_seq_len)
        except DamagedWeights as error:
            raise UnusableModel(str(error)) from error
    return None


def _is_special(storage: dict[str, Any]) -> bool:
    try:
        return bool(ModelConfig.from_dict(storage["model"]).special_features)
    except (KeyError, TypeError, ValueError):  # the reader says what is wrong
        return False


def _storage(folder: Path) -> dict[str, Any]:
    try:
        storage = json.loads((folder / "config.json").read_text())["storage"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return storage if isinstance(storage, dict) else {}
