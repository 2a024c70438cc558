"""A training killed with SIGKILL and resumed, beside one that nobody disturbed; and what the input pipeline costs.

    python -m benchmarks.resume [STEPS]

Both runs are real child processes with the same spec: `nano`, FP32, one thread, a checkpoint every half second. The second is killed
three times, at about a quarter, a half and three quarters of its steps. The pipeline's cost: steps that sample, join and pack their
examples each time, against the same steps on batches that lie packed in memory, in turns.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from workers.training.launcher import command_line
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks
from workers.training.spec import TrainSpec

DEMO = Path(__file__).resolve().parents[1] / "demo" / "knowledge"
ROUNDS = 6


def write_dataset(folder: Path) -> None:
    entries = [json.loads(line) for path in sorted(DEMO.glob("*.jsonl")) for line in path.read_text().splitlines()]
    rows = [{"question": f"What is {e['title']}?", "answer": e["text"]} for e in entries]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def spec_of(folder: Path, name: str, steps: int) -> TrainSpec:
    return TrainSpec(
        dataset_folder=folder, output_folder=folder / name / "model", work_folder=folder / name, steps=steps, precision="fp32", log_every=1,
        log_every_seconds=0.0, checkpoint_every_seconds=0.5, sample_every_seconds=600, evaluate_every_seconds=600,
    )  # fmt: skip


def start(spec: TrainSpec, kill_at: int | None) -> dict[int, float]:
    """The losses that it told, until it ended or was killed."""
    spec.work_folder.mkdir(exist_ok=True)
    (spec.work_folder / "spec.json").write_text(spec.model_dump_json(exclude_unset=True))
    losses: dict[int, float] = {}
    with subprocess.Popen(
        [*command_line(1), str(spec.work_folder / "spec.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        for line in child.stdout or []:
            event = json.loads(line)
            if event["event"] == "step":
                losses[event["step"]] = event["loss"]
                if kill_at and event["step"] >= kill_at:
                    os.kill(child.pid, signal.SIGKILL)
                    break
    return losses


def resumed(folder: Path, steps: int) -> None:
    whole = start(spec_of(folder, "whole", steps), None)
    killed: dict[int, float] = {}
    repeated_alike = True
    for kill_at in (steps // 4, steps // 2, 3 * steps // 4, None):
        more = start(spec_of(folder, "killed", steps), kill_at)
        repeated_alike &= all(killed[step] == loss for step, loss in more.items() if step in killed)
        killed |= more
    ours, theirs = (load_file(folder / name / "model" / "model.safetensors") for name in ("killed", "whole"))
    alike = sum(torch.equal(ours[name], theirs[name]) for name in theirs)
    print("| | steps | loss of the last step | weights |\n|---|---|---|---|")
    print(f"| undisturbed | {max(whole)} | {whole[max(whole)]!r} | |")
    print(f"| killed three times (SIGKILL) | {max(killed)} | {killed[max(killed)]!r} | {alike} of {len(theirs)} tensors equal bit for bit |")
    print(f"\nEvery step's loss equal: {killed == whole and repeated_alike}.")


def pipeline(folder: Path, steps: int) -> None:
    spec = spec_of(folder, "pipeline", 10**6).model_copy(update={"precision": "bf16"})
    loop = Loop(spec, Ranks(0, 1, 1, torch.device("cpu")), prepare(spec, Ranks(0, 1, 1, torch.device("cpu"))))
    fresh = loop._batches
    ready = [fresh(loop._stage_at(0.0)) for _ in range(steps)]
    tokens, spent = {"pipeline": 0, "memory": 0}, {"pipeline": 0.0, "memory": 0.0}
    for turn in range(ROUNDS + 1):
        for name in tokens:
            left = iter(ready)
            loop._batches = fresh if name == "pipeline" else lambda stage, left=left: next(left)  # type: ignore[method-assign]
            began = time.perf_counter()
            seen = sum(loop.step().tokens for _ in range(steps))
            if turn:  # the first warms up
                tokens[name] += seen
                spent[name] += time.perf_counter() - began
    speed = {name: tokens[name] / spent[name] for name in tokens}
    print("\n| nano, BF16, 32 examples a step | tokens/s |\n|---|---|")
    print(f"| with the input pipeline | {speed['pipeline']:,.0f} |\n| batches in memory | {speed['memory']:,.0f} |")
    print(f"\nWith the pipeline / in memory: {speed['pipeline'] / speed['memory']:.3f}")


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 24 if os.environ.get("BENCH_QUICK") else 120
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_dataset(Path(name))
        resumed(Path(name), steps)
        pipeline(Path(name), max(5, steps // 6))


if __name__ == "__main__":
    main()
