"""The demonstration's model, for the benchmarks that need one which knows something: the corpus of the repository processed, and nano trained on it.

Kept in the temporary folder of the machine, so that several benchmarks train it once. `WIDE` is one of 64 M parameters that learns the same: many
small experts, of which a token sees four, so that a step takes a second on two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workers.moe.config import ModelConfig

ROOT = Path(__file__).parent.parent
STEPS = 1060  # the demonstration's two versions, one after the other
QUICK_STEPS = 60
WIDE = ModelConfig(2048, 512, 4, 8, 4, 64, 128, 76, 4)
WIDE_STEPS = 280
WIDE_QUICK_STEPS = 2


def trained(steps: int, threads: int, shape: ModelConfig | None = None) -> tuple[Path, Path]:
    """The model's folder and its dataset's. `shape`: of the model, in place of nano's."""
    home = Path(tempfile.gettempdir()) / f"dsportal-bench-{'wide-' if shape else ''}{steps}"
    home.mkdir(exist_ok=True)
    model, data = home / "model", home / "data"
    if not data.exists():
        inputs = [str(path) for path in sorted((ROOT / "demo").rglob("*.jsonl"))]
        _run("workers.corpus", {"version": 1, "inputs": inputs, "output_folder": str(data), "work_folder": str(home / "work"), "seed": 0}, home)
    if not model.exists():
        folders = {"dataset_folder": str(data), "output_folder": str(model), "work_folder": str(home / "work")}
        kind = {"preset": None, "model": shape.as_dict()} if shape else {"preset": "nano"}
        _run("workers.training", {"version": 1, **folders, **kind, "steps": steps, "threads": threads}, home)
    return model, data


def _run(package: str, spec: dict[str, Any], home: Path) -> None:
    path = home / f"{package}.json"
    path.write_text(json.dumps(spec))
    environment = {**os.environ, "OMP_NUM_THREADS": str(spec.get("threads", 1))}
    subprocess.run([sys.executable, "-m", package, str(path)], cwd=ROOT, check=True, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
