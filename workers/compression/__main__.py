"""`python -m workers.compression SPEC.json`: one compressed child of one model."""

from importlib import import_module
from typing import Any

from workers.compression.spec import CompressSpec
from workers.protocol import run

# Imported when needed: each takes a second or more, and a wrong spec should not have to wait for it.
_METHODS = {
    "int8": ("workers.compression.int8", "run_int8"),
    "prune": ("workers.compression.prune", "run_prune"),
    "distill": ("workers.compression.distill", "run_distill"),
    "onnx": ("workers.compression.onnx_export", "run_onnx"),
    "policy": ("workers.compression.policy", "run_policy"),
}


def main(spec: CompressSpec) -> dict[str, Any]:
    import torch

    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    module, function = _METHODS[spec.method]
    result: dict[str, Any] = getattr(import_module(module), function)(spec)
    return result


if __name__ == "__main__":
    run(main, CompressSpec)
