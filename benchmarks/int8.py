"""S10: INT8 beside our FP32, and beside what PyTorch users would take, on the same weights in one run: bytes, decoding, reading, BLEU, and the limit.

    python -m benchmarks.int8 [--preset base] [--quick]

The demonstration's model, one of 64 M parameters that has learnt the same (once, in some minutes), and with `--preset` a random one of that preset.
All go through the engine's runner interface: the same sequences, the same batches, one thread. Seconds are of the processor's work, taken in turns, and each counts by its best round: other work on the machine only slows one down.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._demonstration import QUICK_STEPS, STEPS, WIDE, WIDE_QUICK_STEPS, WIDE_STEPS, trained
from benchmarks._int8_peers import PEERS, open_peer
from benchmarks.compression import make_parent
from workers.compression.int8 import run_int8
from workers.compression.int8_product import KERNEL, pack, product
from workers.compression.measure import weight_bytes
from workers.compression.quality import ANSWER_TOKENS, held_out
from workers.compression.spec import CompressSpec
from workers.engine import Chunk, Engine, open_engine
from workers.evaluation.evaluate import ask, figures
from workers.moe import ModelConfig, count_parameters, load_model, load_tokenizer, read_config

BATCHES = (1, 8, 32)
STEPS_OF = {1: 24, 8: 8, 32: 4}  # of one round
READ, BEFORE, ROUNDS = 128, 40, 4  # tokens of a prompt that is read; tokens already in the slots while decoding
LENGTH = 256
SLOW_ONES_LEFT_OUT = ("PyTorch, FP32", "`quantize_dynamic`")  # of a model with hundreds of experts


def decode_rate(runner: Any, batch: int, random: np.random.Generator) -> float:
    steps = random.integers(0, runner.vocab_size, (STEPS_OF[batch], batch)).tolist()
    began = time.process_time()
    for step, tokens in enumerate(steps):
        runner.forward([Chunk(slot, BEFORE + step, [token]) for slot, token in enumerate(tokens)])
    return len(steps) * batch / (time.process_time() - began)


def read_rate(runner: Any, random: np.random.Generator) -> float:
    tokens = random.integers(0, runner.vocab_size, READ).tolist()
    began = time.process_time()
    runner.forward([Chunk(0, 0, tokens)])
    return READ / (time.process_time() - began)


def rates(runners: dict[str, Any]) -> dict[str, list[float]]:
    """Tokens/s decoding at each batch, and reading."""
    best = {name: [0.0] * (len(BATCHES) + 1) for name in runners}
    for seed in range(ROUNDS):
        for name, runner in runners.items():
            random = np.random.default_rng(seed)
            found = [*(decode_rate(runner, batch, random) for batch in BATCHES), read_rate(runner, random)]
            best[name] = [max(pair) for pair in zip(best[name], found, strict=True)]
    return best


def bandwidth() -> float:
    """Bytes/s that one core reads from memory."""
    values = np.ones(2**27, np.float32)
    best = 0.0
    for _ in range(4):
        began = time.process_time()
        values.dot(values)
        best = max(best, values.nbytes / (time.process_time() - began))
    return best


def int8_peak() -> float:
    """Multiply-adds/s of our product where everything is in the cache."""
    inputs, outputs, rows = 512, 512, 48
    weight = pack(np.ones((outputs, inputs), np.int8)).reshape(-1)
    x, out = np.ones((rows, inputs), np.uint8), np.zeros((rows, outputs), np.float32)
    scale, offset, best = np.ones(outputs, np.float32), np.zeros(outputs, np.int32), 0.0
    for _ in range(8):
        began = time.process_time()
        for _ in range(40):
            product(x, scale[:rows], rows, weight, scale, offset, inputs, out)
        best = max(best, 40 * inputs * outputs * rows / (time.process_time() - began))
    return best


def limits(config: ModelConfig, weight_bits: int, bytes_a_second: float, macs_a_second: float) -> list[float]:
    """Tokens/s: what must be read (experts drawn evenly) ÷ bandwidth, or what must be multiplied ÷ the peak, whichever is less."""
    _, active = count_parameters(config)
    per_expert = 3 * config.d_model * config.d_expert
    found = []
    for batch in (*BATCHES, READ):
        touched = config.n_experts * (1 - (1 - config.top_k / config.n_experts) ** batch)
        weights = active + config.n_layers * per_expert * (touched - config.top_k)
        found.append(min(batch * bytes_a_second / (weights * weight_bits / 8), macs_a_second / active))
    return found


def bleu(runner: Any, folder: Path, spec: CompressSpec) -> float:
    rows = held_out(spec)
    with closing(Engine(runner, load_tokenizer(folder))) as engine:
        answered: dict[str, Any] = figures(rows, ask(engine, rows, ANSWER_TOKENS, time.monotonic, lambda done, seconds: None), 0)
    return float(answered["bleu"])


def table(
    title: str, parent: Path, data: Path | None, work: Path, macs: float, bytes_a_second: float, questions: int, peers: Sequence[str] = tuple(PEERS)
) -> None:
    spec = CompressSpec(
        method="int8", model_folder=parent, output_folder=work / "child", work_folder=work, dataset_folder=data, max_questions=questions
    )
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        run_int8(spec)
    model, _ = load_model(parent)
    engines = {"ours, FP32": open_engine(parent, max_seq_len=LENGTH), "ours, INT8": open_engine(spec.output_folder, max_seq_len=LENGTH)}
    runners: dict[str, Any] = {name: engine._runner for name, engine in engines.items()}
    sizes = {"ours, FP32": weight_bytes(parent), "ours, INT8": weight_bytes(spec.output_folder)}
    for name in peers:
        runners[name], sizes[name] = open_peer(model, name, LENGTH)
    found = rates(runners)

    scores = {name: bleu(runner, parent, spec) for name, runner in runners.items()} if data else {}  # closes the runners
    print(f"\n**{title}**\n")
    print("| tokens/s | MB | smaller | " + " | ".join(f"decode, {b} at once" for b in BATCHES) + " | read | BLEU |\n|---|---|---|" + "---|" * 5)
    base = found["ours, FP32"]
    for name, speeds in found.items():
        told = " | ".join(f"{speed:,.0f} ({speed / before:.2f}×)" for speed, before in zip(speeds, base, strict=True))
        score = f"{scores[name]:.1f}" if scores else "–"
        print(f"| {name} | {sizes[name] / 1e6:.2f} | {1 - sizes[name] / sizes['ours, FP32']:.1%} | {told} | {score} |")
    in_cache = sizes["ours, INT8"] < 16e6
    most = limits(model.config, 8, 1e15 if in_cache else bytes_a_second, macs)
    cells = " | ".join(f"{limit:,.0f} ({speed / limit:.0%})" for speed, limit in zip(found["ours, INT8"], most, strict=True))
    print(f"| limit of INT8 (we reach) | | | {cells} | |", flush=True)
    if not scores:
        for engine in engines.values():
            engine.close()


def _sizes(folder: Path) -> str:
    total, active = (n / 1e6 for n in count_parameters(read_config(folder)))
    return f"{total:.1f} M parameters, {active:.1f} M for a token"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="measure a random model of it, too")
    parser.add_argument("--quick", action="store_true", help="a barely trained model, few questions")
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    demonstration, data = trained(QUICK_STEPS if quick else STEPS, 2)
    torch.set_num_threads(1)
    macs, bytes_a_second = int8_peak(), bandwidth()
    print(
        f"Kernel: {KERNEL}, {macs / 1e9:,.0f} G multiply-adds/s in the cache; memory: {bytes_a_second / 1e9:.1f} GB/s; one thread. (×: of our FP32.) "
        f"The limit: weights of the experts that are needed ÷ bandwidth (where they do not stay in the cache), or multiply-adds ÷ the kernel's rate."
    )
    with tempfile.TemporaryDirectory() as name:
        questions = 60 if quick else 658
        table("The demonstration's model", demonstration, data, Path(name) / "a", macs, bytes_a_second, questions)
        wide, data = trained(WIDE_QUICK_STEPS if quick else WIDE_STEPS, 2, WIDE)
        table(f"{_sizes(wide)}, trained", wide, data, Path(name) / "b", macs, bytes_a_second, questions, SLOW_ONES_LEFT_OUT)
        if given.preset:
            (Path(name) / "c").mkdir()
            parent = make_parent(given.preset, Path(name) / "c")
            table(f"`{given.preset}`, {_sizes(parent)}, random weights", parent, None, Path(name) / "c", macs, bytes_a_second, 1)


if __name__ == "__main__":
    main()
