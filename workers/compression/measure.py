"""What a compressed model is worth next to its parent: size, speed in the engine, and how often it says the same."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.engine import Chunk, Engine, Runner, open_engine
from workers.moe import ChatTokenizer, Decoder

QUESTIONS = 16
ANSWER_TOKENS = 32
LEAST_SECONDS = 0.3  # of work that an engine is timed by: a small model's round takes some milliseconds, and one of them says little
WEIGHTS = (".safetensors", ".onnx", ".data")

Prompt = list[dict[str, str]]


def weight_bytes(folder: Path) -> int:
    """Bytes of the files that hold weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)


def sample_prompts(dataset_folder: Path | None, tokenizer: ChatTokenizer, seed: int, count: int = QUESTIONS) -> list[Prompt]:
    """Held-out questions of the dataset; without one, texts of random tokens, which measure speed and rounding as well."""
    questions = _held_out(dataset_folder) if dataset_folder else []
    random = np.random.default_rng(seed)
    if questions:
        chosen = [questions[i] for i in random.permutation(len(questions))[:count]]
    else:
        chosen = [tokenizer.decode(random.integers(0, tokenizer.vocab_size, 12).tolist()) for _ in range(count)]
    return [[{"role": "user", "content": text}] for text in chosen]


def _held_out(folder: Path) -> list[str]:
    path = folder / "eval.jsonl"
    if not path.exists():
        return []
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return [row["question"] for row in rows if row.get("question")]


def compare(parent: Path, child: Path, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Tokens per second of both in the engine, on one core, and the share of equal greedy answers.

    The seconds are those that the processor worked, and the two take turns: a job runs beside others, and the clock would measure those.
    """
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(open_engine(folder, threads=1))) for folder in (parent, child)]
        answers = [[c.text for c in engine.generate_all(prompts, ANSWER_TOKENS)] for engine in engines]  # the first run also warms up
        alone = _rates(engines, [prompts[i : i + 1] for i in range(min(4, len(prompts)))] * 2)
        together = _rates(engines, [prompts[:8]] * 4)
    return {
        "bytes_before": weight_bytes(parent), "bytes_after": weight_bytes(child), "size_ratio": weight_bytes(child) / weight_bytes(parent),
        "tokens_per_second_before": {"batch_1": alone[0], "batch_8": together[0]},
        "tokens_per_second_after": {"batch_1": alone[1], "batch_8": together[1]},
        "speed_ratio": {"batch_1": alone[1] / alone[0], "batch_8": together[1] / together[0]},
        "greedy_agreement": sum(a == b for a, b in zip(*answers, strict=True)) / len(prompts), "questions": len(prompts),
    }  # fmt: skip


def _rates(engines: Sequence[Engine], rounds: Sequence[Sequence[Prompt]]) -> list[float]:
    """Each engine's best round, in tokens per second of processor time: other work on the machine makes rounds slower, never faster.

    All rounds, and again as long as an engine has worked less than LEAST_SECONDS.
    """
    best, worked = [0.0] * len(engines), [0.0] * len(engines)
    while min(worked) < LEAST_SECONDS:
        for prompts in rounds:
            for number, engine in enumerate(engines):
                began = time.process_time()
                completions = engine.generate_all(prompts, ANSWER_TOKENS)
                seconds = time.process_time() - began
                worked[number] += seconds
                best[number] = max(best[number], sum(c.tokens + 1 for c in completions) / seconds)  # the end token is a step too
    return best


@torch.inference_mode()
def logit_error(model: Decoder, runner: Runner, sequences: Sequence[list[int]]) -> dict[str, float]:
    """How far the runner's logits after each sequence are from the model's."""
    differences = []
    spread = []
    for start in range(0, len(sequences), runner.max_batch):
        group = sequences[start : start + runner.max_batch]
        found = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(group)])
        wanted = torch.stack([model(torch.tensor([tokens]))[0, -1] for tokens in group]).numpy()
        differences.append(np.abs(found - wanted))
        spread.append(wanted)
    all_of_them = np.concatenate(differences)
    return {
        "max_abs_error": float(all_of_them.max()), "mean_abs_error": float(all_of_them.mean()),
        "logit_deviation": float(np.concatenate(spread).std()),
    }  # fmt: skip
