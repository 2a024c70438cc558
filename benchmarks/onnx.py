"""S20: the ONNX export beside our engine: the same greedy answers on the whole evaluation set, and tokens a second.

    python -m benchmarks.onnx [--quick] [--model FOLDER --data FOLDER]

Every held-out question and claim is asked of the version itself and of its graphs in onnxruntime, FP32 and INT8, through the same engine. Where two
answers differ, the gap between the two best logits at the first token that differs says whether it was a tie. Speed as in `benchmarks.int8`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._demonstration import QUICK_STEPS, STEPS, trained
from benchmarks.int8 import BATCHES, LENGTH, rates
from workers.compression.int8 import run_int8
from workers.compression.measure import weight_bytes
from workers.compression.onnx_export import run_onnx
from workers.compression.quality import ANSWER_TOKENS
from workers.compression.spec import CompressSpec
from workers.engine import Chunk, open_engine
from workers.evaluation.evaluate import ROUND_PROMPTS
from workers.evaluation.questions import HeldOut, read_held_out
from workers.moe import ChatTokenizer, load_tokenizer

MIXED_PASTS = (9, 20, 41, 66, 90, 121, 150, 200)  # tokens
MIXED_STEPS, MIXED_ROUNDS = 16, 6


def make(model: Path, work: Path) -> dict[str, Path]:
    """Our two versions and their graphs, by name."""
    folders = {"ours, FP32": model, "ours, INT8": work / "int8", "ONNX, FP32": work / "onnx", "ONNX, INT8": work / "onnx-int8"}
    made: tuple[tuple[str, Callable[[CompressSpec], dict[str, Any]], dict[str, Any]], ...] = (
        ("ours, INT8", run_int8, {"method": "int8"}),
        ("ONNX, FP32", run_onnx, {"method": "onnx"}),
        ("ONNX, INT8", run_onnx, {"method": "onnx", "weights": "int8"}),
    )
    for name, run, options in made:
        spec = CompressSpec(model_folder=model, output_folder=folders[name], work_folder=work, **options)
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            run(spec)
    return folders


def answers(folder: Path, rows: Sequence[HeldOut]) -> list[str]:
    said: list[str] = []
    with closing(open_engine(folder, threads=os.cpu_count() or 1, max_seq_len=LENGTH)) as engine:
        for start in range(0, len(rows), ROUND_PROMPTS):
            asked = [[{"role": "user", "content": row.question}] for row in rows[start : start + ROUND_PROMPTS]]
            said += [completion.text for completion in engine.generate_all(asked, ANSWER_TOKENS)]
    return said


def gap(folder: Path, tokenizer: ChatTokenizer, question: str, ours: str, theirs: str) -> float:
    """Between the two best logits where the answers part, of the model in `folder`."""
    prompt = tokenizer.encode_prompt([{"role": "user", "content": question}])
    pairs = zip(tokenizer.encode(ours), tokenizer.encode(theirs), strict=False)
    shared = [mine for mine, its in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    with closing(open_engine(folder, max_seq_len=LENGTH)) as engine:
        logits: Any = engine._runner.forward([Chunk(0, 0, [*prompt, *shared])])[0]
    best = np.sort(logits)[-2:]
    return float(best[1] - best[0])


def mixed_rates(runners: dict[str, Any]) -> dict[str, float]:
    """Tokens/s of sequences whose pasts are of different lengths."""
    best = dict.fromkeys(runners, 0.0)
    for runner in runners.values():
        for slot, past in enumerate(MIXED_PASTS):
            runner.forward([Chunk(slot, 0, [7] * past)])
    for _ in range(MIXED_ROUNDS):
        for name, runner in runners.items():
            began = time.process_time()
            for step in range(MIXED_STEPS):
                runner.forward([Chunk(slot, past + step, [9]) for slot, past in enumerate(MIXED_PASTS)])
            best[name] = max(best[name], MIXED_STEPS * len(MIXED_PASTS) / (time.process_time() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a barely trained model, few questions")
    parser.add_argument("--model", type=Path, help="a model folder in place of the demonstration's, with --data")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    model, data = (given.model, given.data) if given.model else trained(QUICK_STEPS if quick else STEPS, 2)
    rows = read_held_out(data / "eval.jsonl")[: 60 if quick else None]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folders = make(model, Path(work))
        said = {name: answers(folder, rows) for name, folder in folders.items()}
        engines = {name: open_engine(folder, max_seq_len=LENGTH) for name, folder in folders.items()}
        runners = {name: engine._runner for name, engine in engines.items()}
        found = rates(runners)
        for name, rate in mixed_rates(runners).items():
            found[name].append(rate)
        for engine in engines.values():
            engine.close()
        print(f"{len(rows)} held-out questions and claims, greedy, at most {ANSWER_TOKENS} tokens each. Tokens/s of one thread (×: of ours).\n")
        print(
            "| | MB | answers as ours | "
            + " | ".join(f"decode, {batch} at once" for batch in BATCHES)
            + " | read | decode, 8 of mixed lengths |\n|---|---|---|"
            + "---|" * 5
        )
        parted = []
        for name, folder in folders.items():
            ours = name.replace("ONNX", "ours")
            equal = sum(a == b for a, b in zip(said[name], said[ours], strict=True))
            parted += [(name, row.question, mine, its) for row, mine, its in zip(rows, said[ours], said[name], strict=True) if mine != its]
            told = " | ".join(f"{speed:,.0f} ({speed / base:.2f}×)" for speed, base in zip(found[name], found[ours], strict=True))
            print(f"| {name} | {weight_bytes(folder) / 1e6:.2f} | {f'{equal} of {len(rows)}' if name != ours else ''} | {told} |", flush=True)
        tokenizer = load_tokenizer(model)
        for name in folders:
            if gaps := [gap(folders[name.replace("ONNX", "ours")], tokenizer, *rest) for other, *rest in parted if other == name]:
                print(
                    f"\n{name}: where the {len(gaps)} others part, our two best logits lie {min(gaps):.2g} to {max(gaps):.2g} apart, "
                    f"half of them less than {np.median(gaps):.2g}."
                )


if __name__ == "__main__":
    main()
