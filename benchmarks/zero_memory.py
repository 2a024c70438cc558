"""The memory of each rank of a real training, whole process and all, at every ZeRO stage, beside what the planner says before the start.

    python -m benchmarks.zero_memory            nano and small, 2 and 4 gloo ranks, stages 0–3, FP32 and BF16
    python -m benchmarks.zero_memory --short    nano, 2 ranks, stages 0 and 3, FP32
    python -m benchmarks.zero_memory --presets base --ranks 2 --precisions fp32
    python -m benchmarks.zero_memory --ways experts average lora dpo pictures --ranks 2 --stages 1

Ways to train: plain; experts spread over the ranks (stages 0 and 1); a moving average of the weights; adapters of rank 8; DPO from pairs,
against the model as the stage finds it; and questions about pictures.

Measured is the peak of resident memory of the rank that takes most (VmHWM), over a whole job: preparing, a few steps, a
checkpoint, writing the model. Planned is `workers.planning.peak` for the rows that the run really packed.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from demo.pictures import records as pictures
from workers.training.launcher import TORCHRUN_HERE

MB = 1e6
STEPS = {"fp32": 8, "bf16": 60}  # in half precision memory grows until the shapes have all been met
MICRO_BATCH = 32
LORA_RANK = 8
PAIRS = 1000
WAYS = ("plain", "experts", "average", "lora", "dpo", "pictures")
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
    from workers.training.ranks import end_at_once
    from workers.training.spec import TrainSpec
    from workers.training.train import train

    spec = TrainSpec.model_validate_json(spec_path.read_text())
    largest = [0, 0, 0]
    patches = 0
    forward = Decoder.forward

    def watched(model, tokens, **given):
        if model.training and tokens.numel() > largest[0] * largest[1]:
            largest[:] = [*tokens.shape, len(given["select"])]
            nonlocal patches
            patches = len(given["image_at"]) if given["image_at"] is not None else 0
        return forward(model, tokens, **given)

    Decoder.forward = watched  # type: ignore[method-assign]
    result = train(spec)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    found = {"peak": peak, "largest": largest, "patches": patches}
    if result is not None:
        (spec.work_folder / "measured_config.json").write_text(json.dumps(result["config"]))
    (spec.work_folder / f"measured{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
    end_at_once()


def asked_for(way: str, ranks: int, parent: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the way adds to the job's spec, and to the planner's setting."""
    if way == "experts":
        return {"expert_parallel_size": ranks}, {"expert_ranks": ranks}
    if way == "average":
        return {"ema_decay": 0.99}, {"average": True}
    if way == "lora":
        return {"lora": {"rank": LORA_RANK}, "parent_folder": str(parent)}, {"lora_rank": LORA_RANK}
    if way == "dpo":
        return {"objective": "dpo", "parent_folder": str(parent)}, {"pairs": PAIRS}
    return {}, {}


def planned(way: str, preset: str, precision: str, stage: int, ranks: int, found: dict[str, Any]) -> tuple[float, str]:
    from workers.moe import ModelConfig, count_parameters
    from workers.planning import Setting, Shape, peak, total

    config = ModelConfig.from_dict(found["config"])
    shape = Shape(
        preset, *count_parameters(config), config.vocab_size, config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim,
        config.d_expert or config.d_dense, config.n_experts, config.top_k, config.max_seq_len,
    )  # fmt: skip
    rows, length, learnt = found["largest"]
    more = asked_for(way, ranks, Path())[1]
    patches = found["patches"] / (rows * length)
    moment, parts = peak(Setting(shape, precision, rows, length, stage, ranks, learnt_share=learnt / (rows * length), patch_share=patches, **more))
    told = ", ".join(f"{part.name} {part.bytes / MB:.0f}" for part in parts)
    return total(parts), f"{moment}: {told}"


def run(way: str, preset: str, precision: str, stage: int, ranks: int, folder: Path) -> dict[str, Any]:
    """One job of `ranks` processes; the largest of their peaks."""
    parent = parent_of(preset, folder) if way in ("lora", "dpo") else folder
    spec = {
        "dataset_folder": str(folder / ("pictures" if way == "pictures" else "text")), "preset": preset, "steps": STEPS[precision], "precision": precision,
        "zero_stage": stage, "world_size": ranks, "threads": ranks, "micro_batch": MICRO_BATCH, **asked_for(way, ranks, parent)[0],
    }  # fmt: skip
    return trained(spec, folder / f"{way}-{preset}-{precision}-{ranks}-{stage}", ranks)


def trained(spec: dict[str, Any], work: Path, ranks: int) -> dict[str, Any]:
    work.mkdir()
    path = work / "spec.json"
    path.write_text(json.dumps(spec | {"output_folder": str(work / "model"), "work_folder": str(work)}))
    launcher = [sys.executable] if ranks == 1 else [*TORCHRUN_HERE, f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*launcher, "-m", "benchmarks.zero_memory", "--measure", str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-2000:])
    found = [json.loads((work / f"measured{rank}.json").read_text()) for rank in range(ranks)]
    config = json.loads((work / "measured_config.json").read_text())
    shutil.rmtree(work / "checkpoints")
    return {**max(found, key=lambda each: each["peak"]), "config": config}


def parent_of(preset: str, folder: Path) -> Path:
    """A model of that shape to go on from."""
    work = folder / f"parent-{preset}"
    if not work.exists():
        trained({"dataset_folder": str(folder / "text"), "preset": preset, "steps": 1, "precision": "fp32"}, work, 1)
    return work / "model"


def write_data(folder: Path) -> None:
    """`text`: questions, and pairs of answers of which one was preferred; `pictures`: of demo.pictures."""
    chance = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(least, most)))

    rows = [{"question": f"What is {words(2, 8)} {n}?", "answer": f"{words(2, 12)} {n * 37}."} for n in range(PAIRS)]
    pairs = [{"kind": "pair", "question": row["question"], "chosen": row["answer"], "rejected": words(2, 12)} for row in rows]
    pictured = [row for row in pictures(300, seed=0) if row["split"] == "train"]
    for file, lines in (("text/train", rows), ("text/preferences", pairs), ("pictures/train", pictured)):
        path = folder / f"{file}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["plain"])
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
    print(f"| way | preset | precision | ranks | stage | measured MB | planned MB | measured / planned | planned, by part |\n|{'---|' * 9}")
    worst = 1.0
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        for way, preset, precision, ranks, stage in product(asked.ways, asked.presets, asked.precisions, asked.ranks, asked.stages):
            if (stage and ranks == 1) or (way == "experts" and (stage > 1 or ranks == 1)):
                continue
            found = run(way, preset, precision, stage, ranks, Path(name))
            plan, parts = planned(way, preset, precision, stage, ranks, found)
            ratio = found["peak"] / plan
            worst = max(worst, ratio, 1 / ratio)
            print(
                f"| {way} | {preset} | {precision} | {ranks} | {stage} | {found['peak'] / MB:.0f} | {plan / MB:.0f} | {ratio:.3f} | {parts} |", flush=True
            )  # fmt: skip
    print(f"\nFarthest from the plan: {100 * (worst - 1):.0f} %.")


if __name__ == "__main__":
    main()
