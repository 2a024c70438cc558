"""What each ZeRO stage keeps in the memory of one rank, measured on two gloo ranks, beside the plain formula.

    python -m benchmarks.zero_memory

Counted are the bytes of this rank's parts of the weights, gradients and optimizer state at rest, after two steps in FP32: what
grows with the model. Activations, and the layers that are gathered while they are used, come on top. The formula, for Ψ
parameters over N ranks (ZeRO, Rajbhandari 2020, §5): 4Ψ weights + 4Ψ gradients + 8Ψ Adam, each over N from the stage that shards it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RANKS = 2
STAGES = (0, 1, 2, 3)
MB = 1e6


def formula(parameters: int, stage: int, ranks: int) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer state on one rank. FSDP2 shards weights at rest in stage 2 too."""
    shard = [1 if stage < first else ranks for first in (2, 2, 1)]
    return 4 * parameters / shard[0], 4 * parameters / shard[1], 8 * parameters / shard[2]


def measure(stage: int) -> None:
    """On each rank, under torchrun; the first prints."""
    from workers.moe import count_parameters
    from workers.training.loop import Loop
    from workers.training.parallel import part_of
    from workers.training.prepare import prepare
    from workers.training.ranks import join, leave
    from workers.training.spec import TrainSpec

    folder = Path(os.environ["BENCHMARK_FOLDER"])
    spec = TrainSpec(
        dataset_folder=folder, output_folder=folder / f"model{stage}", work_folder=folder / f"work{stage}", preset="small", steps=100,
        precision="fp32", zero_stage=stage, world_size=RANKS, threads=RANKS, micro_batch=4, optimizer="adamw",  # of whose two states the formula speaks
    )  # fmt: skip
    ranks = join(spec)
    loop = Loop(spec, ranks, prepare(spec, ranks))
    kept: list[int] = []
    step = loop.precision.step

    def count_gradients(optimizer, model, clip_norm):
        kept.append(sum(nbytes(part_of(p.grad)) for p in model.parameters()))
        return step(optimizer, model, clip_norm)

    loop.precision.step = count_gradients  # type: ignore[method-assign]
    loop.step()
    loop.step()
    weights = sum(nbytes(part_of(p)) for p in loop.model.parameters())
    local = getattr(loop.optimizer, "optim", loop.optimizer)
    state = sum(nbytes(part_of(v)) for values in local.state.values() for v in values.values())
    if ranks.is_first:
        print(json.dumps({"parameters": count_parameters(loop.model.config)[0], "measured": [weights, kept[-1], state]}))
    leave(ranks)


def nbytes(tensor) -> int:
    return tensor.numel() * tensor.element_size()


def main() -> None:
    if len(sys.argv) == 2:
        measure(int(sys.argv[1]))
        return
    print(f"| stage | weights MB | gradients MB | optimizer MB | together | formula | measured / formula |\n|{'---|' * 7}")
    with tempfile.TemporaryDirectory() as name:
        rows = [{"question": f"What is thing {n}?", "answer": f"Thing {n} is number {n * 37}."} for n in range(200)]
        (Path(name) / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for stage in STAGES:
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={RANKS}",
                "-m",
                "benchmarks.zero_memory",
                str(stage),
            ]
            env = {**os.environ, "BENCHMARK_FOLDER": name, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            found = json.loads(done.stdout.splitlines()[-1])
            expected, got = sum(formula(found["parameters"], stage, RANKS)), sum(found["measured"])
            parts = " | ".join(f"{part / MB:.1f}" for part in found["measured"])
            print(f"| {stage} | {parts} | {got / MB:.1f} | {expected / MB:.1f} | {got / expected:.3f} |", flush=True)


if __name__ == "__main__":
    main()
