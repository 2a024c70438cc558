"""What each method of compression does to a model's file and to its speed in the engine, next to its parent, in one run.

    python -m benchmarks.compression [PRESET …] [--quick] [--model FOLDER --data FOLDER]

First with random weights, then with the demonstration's model: how much of its quality a student, an ONNX graph and the policy keep.

Weights are random (speed and size do not depend on what they say; quality does, and each job measures it on the real model), questions
are random text. Speed is that of decoding 64 tokens after the first, whatever they are; seconds are of one core's work; parent and child answer
in turns, and each counts by its best rounds.
"""

import argparse
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks._policy_table import print_table
from workers.compression.distill import run_distill
from workers.compression.int8 import run_int8
from workers.compression.onnx_export import run_onnx
from workers.compression.prune import run_prune
from workers.compression.spec import CompressSpec
from workers.moe import PRESETS, ChatTokenizer, Decoder, save_model

THREADS = 1
METHODS = (
    ("INT8", "int8", run_int8, {}),
    ("pruned, half of the weights", "prune", run_prune, {"sparsity": 0.5}),
    ("pruned, 2:4", "prune", run_prune, {"structure": "2:4"}),
    ("pruned, half of the hidden units", "prune", run_prune, {"sparsity": 0.5, "structure": "neuron"}),
    ("student of a fifth (its shape: two steps)", "distill", run_distill, {"steps": 2}),
    ("ONNX", "onnx", run_onnx, {}),
)


def make_parent(preset: str, folder: Path) -> Path:
    texts = ["What is it? It is a thing of many words, and of some others.", "它是什么？它是一个东西。"] * 4
    model = Decoder(PRESETS[preset])
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)  # as spread as trained ones
    save_model(folder / "parent", model.eval(), ChatTokenizer.train(texts, 400), "")
    (folder / "train.jsonl").write_text('{"question": "What is it?", "answer": "It is a thing."}\n')
    return folder / "parent"


def row(name: str, details: dict[str, Any]) -> str:
    before, after, ratio = (details[key] for key in ("tokens_per_second_before", "tokens_per_second_after", "speed_ratio"))
    speeds = " | ".join(f"{after[b]:,.0f} | {before[b]:,.0f} | {ratio[b]:.2f}" for b in ("batch_1", "batch_8", "batch_32"))
    return f"| {name} | {details['bytes_after'] / 1e6:.2f} | {1 - details['size_ratio']:.1%} | {speeds} | {details['greedy_agreement']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", choices=[*PRESETS, []], help="none: nano and small")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs, not what it reaches")
    parser.add_argument("--model", type=Path, help="a model folder in place of the demonstration's, with --data")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=2, help="of training")
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    random_weights(given.presets or (["nano"] if quick else ["nano", "small"]))
    torch.set_num_threads(given.threads)
    print_table(quick, given.threads, given.model, given.data)


def random_weights(presets: list[str]) -> None:
    torch.set_num_threads(THREADS)
    for preset in presets:
        with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nowhere:
            folder = Path(name)
            parent = make_parent(preset, folder)
            print(f"\n**{preset}**, {(parent / 'model.safetensors').stat().st_size / 1e6:.2f} MB in FP32\n")
            print(
                "| | MB | smaller | tokens/s, batch 1 | parent | ratio | batch 8 | parent | ratio | batch 32 | parent | ratio | equal answers |\n"
                "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
            )
            for title, method, run, options in METHODS:
                spec = CompressSpec(
                    method=method, model_folder=parent, output_folder=folder / "child", work_folder=folder, threads=THREADS, **options
                )
                if method == "distill":
                    spec = spec.model_copy(update={"dataset_folder": folder})
                torch.manual_seed(0)
                with redirect_stdout(nowhere):
                    result = run(spec)
                print(row(title, result["details"]), flush=True)


if __name__ == "__main__":
    main()
