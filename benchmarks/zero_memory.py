"""The memory of each rank of a real training, whole process and all, at every ZeRO stage, beside what the planner says before the start.

    python -m benchmarks.zero_memory            nano and small, 2 and 4 gloo ranks, stages 0–3, FP32 and BF16
    python -m benchmarks.zero_memory --short    nano, 2 ranks, stages 0 and 3, FP32
    python -m benchmarks.zero_memory --presets base --ranks 2 --precisions fp32

Measured is the peak of resident memory of the rank that takes most (VmHWM), over a whole job: preparing, a few steps, a
checkpoint, writing the model. Planned is `workers.planning.peak` for the rows that the run really packed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workers.moe.config import PRESETS

MB = 1e6
STEPS = {"fp32": 8, "bf16": 60}  # in half precision memory grows until the shapes have all been met
MICRO_BATCH = 32
WORDS = [
    "water",
    "light",
    "stone",
    "river",
    "cloud",
    "metal",
    "heat",
    "cold",
    "field",
    "force",
    "wave",
    "star",
    "leaf",
    "root",
    "salt",
    "iron",
    "glass",
    "paper",
    "wind",
    "rain",
]


def measure(spec_path: Path) -> None:
    """On each rank, under torchrun: train, then write down the peak and the largest batch."""
    from workers.moe import Decoder
    from workers.training.spec import TrainSpec
    from workers.training.train import train

    spec = TrainSpec.model_validate_json(spec_path.read_text())
    largest = [0, 0, 0]
    forward = Decoder.forward

    def watched(model, tokens, **given):
        if model.training and tokens.numel() > largest[0] * largest[1]:
            largest[:] = [*tokens.shape, len(given["select"])]
        return forward(model, tokens, **given)

    Decoder.forward = watched  # type: ignore[method-assign]
    train(spec)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    vocabulary = json.loads((spec.work_folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    found = {"peak": peak, "largest": largest, "vocabulary": len(vocabulary)}
    (spec.work_folder / f"measured{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def planned(preset: str, precision: str, stage: int, ranks: int, found: dict[str, Any]) -> tuple[float, str]:
    from workers.moe import count_parameters
    from workers.planning import Setting, Shape, peak, total

    config = PRESETS[preset].with_(vocab_size=found["model"]["vocab_size"])
    shape = Shape(
        preset, *count_parameters(config), config.vocab_size, config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim,
        config.d_expert or config.d_dense, config.n_experts, config.top_k, config.max_seq_len,
    )  # fmt: skip
    rows, length, learnt = found["largest"]
    moment, parts = peak(Setting(shape, precision, rows, length, stage, ranks, learnt_share=learnt / (rows * length)))
    told = ", ".join(f"{part.name} {part.bytes / MB:.0f}" for part in parts)
    return total(parts), f"{moment}: {told}"


def run(preset: str, precision: str, stage: int, ranks: int, folder: Path) -> dict[str, Any]:
    """One job of `ranks` processes; the largest of their peaks."""
    work = folder / f"{preset}-{precision}-{ranks}-{stage}"
    work.mkdir()
    spec = {
        "dataset_folder": str(folder), "output_folder": str(work / "model"), "work_folder": str(work), "preset": preset, "steps": STEPS[precision], "precision": precision,
        "zero_stage": stage, "world_size": ranks, "threads": ranks, "micro_batch": MICRO_BATCH,
    }  # fmt: skip
    path = work / "spec.json"
    path.write_text(json.dumps(spec))
    launcher = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*launcher, "-m", "benchmarks.zero_memory", "--measure", str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-2000:])
    found = [json.loads((work / f"measured{rank}.json").read_text()) for rank in range(ranks)]
    model = (
        json.loads(next(line for line in done.stdout.splitlines()[::-1] if '"config"' in line))["result"]["config"]
        if '"config"' in done.stdout
        else None
    )
    most = max(found, key=lambda each: each["peak"])
    return {**most, "model": model or {"vocab_size": most["vocabulary"]}, "least": min(each["peak"] for each in found)}


def write_data(folder: Path) -> None:
    chance = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(least, most)))

    rows = [{"question": f"What is {words(2, 8)} {n}?", "answer": f"{words(2, 12)} {n * 37}."} for n in range(1000)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--presets", nargs="+", default=["nano", "small"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
        return
    if asked.short or os.environ.get("BENCH_QUICK"):
        asked.presets, asked.ranks, asked.stages, asked.precisions = ["nano"], [2], [0, 3], ["fp32"]
    print(f"| preset | precision | ranks | stage | measured MB | planned MB | measured / planned | planned, by part |\n|{'---|' * 8}")
    worst = 1.0
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        for preset in asked.presets:
            for precision in asked.precisions:
                for ranks in asked.ranks:
                    for stage in asked.stages if ranks > 1 else [0]:
                        found = run(preset, precision, stage, ranks, Path(name))
                        plan, parts = planned(preset, precision, stage, ranks, found)
                        ratio = found["peak"] / plan
                        worst = max(worst, ratio, 1 / ratio)
                        print(
                            f"| {preset} | {precision} | {ranks} | {stage} | {found['peak'] / MB:.0f} | {plan / MB:.0f} | {ratio:.3f} | {parts} |", flush=True
                        )  # fmt: skip
    print(f"\nFarthest from the plan: {100 * (worst - 1):.0f} %.")


if __name__ == "__main__":
    main()
