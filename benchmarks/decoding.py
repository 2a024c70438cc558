"""What the engine adds to the compiled decoder: tokens a second by steps one at a time and by several at once, in turns in one run.

    python -m benchmarks.decoding [--rounds 5] [--tokens 64]

Random weights of `nano`, of the student that distillation derives from it, and of `small`; greedy, FP32, one thread. Seconds are those that the
processor worked; each way counts by its best round. `alone`: the compiled decoder reads the same
prompts and is called once for all tokens.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving import random_model
from workers.compression.students import student_config
from workers.engine import Chunk, Engine
from workers.engine.fused_runner import FusedRunner
from workers.engine.fused_weights import read_weights
from workers.moe import Decoder, load_model, load_tokenizer, save_model

TOGETHER = (1, 8, 32)


class OneStepAtATime:
    """A runner that does not go on by itself."""

    def __init__(self, runner: Any):
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        if name == "decode":
            raise AttributeError(name)
        return getattr(self._runner, name)


def make_models(folder: Path) -> dict[str, Path]:
    nano = random_model("nano", folder / "nano")
    teacher, tokenizer = load_model(nano)
    student = Decoder(student_config(teacher.config, None))
    student.initialise(torch.Generator().manual_seed(0))
    save_model(folder / "student", student.eval(), tokenizer, "A random model, to measure speed on.")
    return {"nano": nano, "its student": folder / "student", "small": random_model("small", folder / "small")}


def questions(together: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"What is entry {n}, and is it {n * 7}?"}] for n in range(together)]


def ask(engine: Engine, together: int, tokens: int) -> int:
    return sum(done.tokens + (done.finish_reason == "stop") for done in engine.generate_all(questions(together), tokens))


def decode(runner: FusedRunner, prompts: list[list[int]], tokens: int, is_end: NDArray[np.bool_]) -> int:
    first = [int(runner.forward([Chunk(slot, 0, prompt)])[0].argmax()) for slot, prompt in enumerate(prompts)]
    chunks = [Chunk(slot, len(prompt), [token]) for slot, (prompt, token) in enumerate(zip(prompts, first, strict=True))]
    return sum(1 + len(more) for more in runner.decode(chunks, [tokens - 1] * len(chunks), is_end))


def rates(folder: Path, rounds: int, tokens: int) -> dict[int, list[float]]:
    """Number together → tokens a processor second: one step at a time, several at once, alone."""
    best = {together: [0.0, 0.0, 0.0] for together in TOGETHER}
    tokenizer, described = load_tokenizer(folder), json.loads((folder / "config.json").read_text())

    def runner() -> FusedRunner:
        return FusedRunner(read_weights(folder, described), threads=1, max_batch=max(TOGETHER), max_seq_len=512)

    is_end = np.isin(np.arange(described["vocab_size"]), list(tokenizer.end_ids))
    with ExitStack() as stack:
        single, several = (stack.enter_context(closing(Engine(opened, tokenizer))) for opened in (OneStepAtATime(runner()), runner()))
        alone = stack.enter_context(closing(runner()))
        for together in TOGETHER:
            prompts = [tokenizer.encode_prompt(question) for question in questions(together)]
            ways: list[Callable[[], int]] = [
                partial(ask, single, together, tokens), partial(ask, several, together, tokens), partial(decode, alone, prompts, tokens, is_end)
            ]  # fmt: skip
            for _ in range(rounds):
                for way, run in enumerate(ways):
                    began = time.process_time()
                    told = sum(run() for _ in range(max(1, 8 // together)))
                    best[together][way] = max(best[together][way], told / (time.process_time() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2 if os.environ.get("BENCH_QUICK") else 5)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        found = {name: rates(folder, given.rounds, given.tokens) for name, folder in make_models(Path(temporary)).items()}
    print("| tokens/s | together | one step at a time | several at once | ratio | alone | the engine's part |\n|---|---|---|---|---|---|---|")
    for name, by_number in found.items():
        for together, (single, several, alone) in by_number.items():
            print(
                f"| {name} | {together} | {single:,.0f} | {several:,.0f} | {several / single:.2f}× | {alone:,.0f} | {max(0.0, 1 - several / alone):.0%} |"
            )
    ratios = (f"{found['its student'][n][1] / found['nano'][n][1]:.1f}× at {n}" for n in TOGETHER)
    print(f"\nThe student answers {', '.join(ratios)} what its teacher does.")


if __name__ == "__main__":
    main()
