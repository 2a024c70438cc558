import json
import subprocess
import sys

import pytest

from workers.compression import applicable


def _run(tmp_path, **spec) -> tuple[int, list[dict]]:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"version": 1, "output_folder": str(tmp_path / "child"), "work_folder": str(tmp_path), **spec}))
    done = subprocess.run(
        [sys.executable, "-m", "workers.compression", str(path)], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_job_tells_its_progress_and_ends_with_its_result(tmp_path, make_model, save):
    code, events = _run(tmp_path, method="prune", sparsity=0.5, model_folder=str(save(make_model())))
    assert code == 0
    progress = [e["progress"] for e in events if e["event"] == "progress"]
    assert progress == sorted(progress)
    assert events[-1]["result"]["kind"] == "pruned"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "prune", "threshold": -0.1}, "threshold: Input should be greater than 0"),
        ({"method": "prune", "sparsity": 1.0}, "sparsity: Input should be less than 1"),
        ({"method": "prune", "sparsity": 0.5, "threshold": 0.1}, "not both"),
        ({"method": "prune", "sparsity": 0.9, "structure": "2:4"}, "zeroes two of every four"),
        ({"method": "shrink"}, "method: Input should be"),
        ({"method": "int8"}, "is not a model folder"),
    ],
)
def test_bad_options_end_with_a_message_for_people(tmp_path, options, says):
    code, events = _run(tmp_path, model_folder=str(tmp_path / "nothing"), **options)
    assert code == 1
    assert events[-1]["event"] == "error"
    assert says in events[-1]["message"]


@pytest.mark.parametrize("method", ["int8", "prune", "distill", "onnx", "policy"])
@pytest.mark.parametrize("kind", ["moe", "dense", "distilled"])
def test_every_method_applies_to_a_full_model(kind, method):
    assert applicable(kind, method) is None


@pytest.mark.parametrize(("kind", "method", "applies"), [
    ("pruned", "int8", True), ("pruned", "onnx", True), ("pruned", "prune", False), ("int8", "int8", False), ("int8", "onnx", True), ("onnx", "distill", False),
])  # fmt: skip
def test_a_compressed_model_takes_what_still_makes_sense(kind, method, applies):
    assert (applicable(kind, method) is None) == applies


def test_asking_what_applies_and_serving_int8_need_no_torch(tmp_path, make_model, save, spec):
    from workers.compression.int8 import run_int8

    run_int8(made := spec("int8", save(make_model())))
    code = f"""
import sys
from pathlib import Path
from workers.compression import applicable, open_runner
open_runner(Path({str(made.output_folder)!r}), threads=1, max_batch=1, max_seq_len=96).close()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
