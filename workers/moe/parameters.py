"""Parameters counted, not typed in: the model is built on torch's meta device.

`python -m workers.moe.parameters` writes `presets.json`, which the web process reads instead of importing torch.
"""

import json
from pathlib import Path
from typing import Any

import torch

from workers.moe.config import PRESETS, ModelConfig, dense_twin
from workers.moe.model import Decoder

PRESETS_FILE = Path(__file__).with_name("presets.json")


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Total parameters, and those active for one token (all but the experts that are not chosen)."""
    with torch.device("meta"):
        model = Decoder(config)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    idle = experts * (config.n_experts - config.top_k) // config.n_experts if config.is_moe else 0
    return total, total - idle


def describe_presets() -> list[dict[str, Any]]:
    rows = []
    for name, config in PRESETS.items():
        total, active = count_parameters(config)
        twin = dense_twin(config)
        rows.append(
            {
                "name": name, "total_parameters": total, "active_parameters": active, "configuration": config.as_dict(),
                "dense_twin": {"total_parameters": count_parameters(twin)[0], "configuration": twin.as_dict()},
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    PRESETS_FILE.write_text(json.dumps(describe_presets(), indent=1) + "\n")
