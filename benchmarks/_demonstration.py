"""The demonstration's model, for the benchmarks that need one which knows something: the corpus of the repository processed, and nano trained on it.

Kept in the temporary folder of the machine, so that several benchmarks train it once.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STEPS = 1060  # the demonstration's two versions, one after the other
QUICK_STEPS = 60


def trained(steps: int, threads: int) -> tuple[Path, Path]:
    """The model's folder and its dataset's."""
    home = Path(tempfile.gettempdir()) / f"dsportal-bench-{steps}"
    home.mkdir(exist_ok=True)
    model, data = home / "model", home / "data"
    if not data.exists():
        inputs = [str(path) for path in sorted((ROOT / "demo").rglob("*.jsonl"))]
        _run("workers.corpus", {"version": 1, "inputs": inputs, "output_folder": str(data), "work_folder": str(home / "work"), "seed": 0}, home)
    if not model.exists():
        folders = {"dataset_folder": str(data), "output_folder": str(model), "work_folder": str(home / "work")}
        _run("workers.training", {"version": 1, **folders, "preset": "nano", "steps": steps, "threads": threads}, home)
    return model, data


def _run(package: str, spec: dict[str, Any], home: Path) -> None:
    path = home / f"{package}.json"
    path.write_text(json.dumps(spec))
    environment = {**os.environ, "OMP_NUM_THREADS": str(spec.get("threads", 1))}
    subprocess.run([sys.executable, "-m", package, str(path)], cwd=ROOT, check=True, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
