"""What a compressed model is worth next to its parent: size, speed in the engine, and how often it says the same."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.engine import Chunk, Engine, Runner, open_engine
from workers.moe import ChatTokenizer, Decoder

QUESTIONS = 16
ANSWER_TOKENS = 32
TOGETHER = (1, 8, 32)  # answers at a time, of which speed is told
ALONE = 4  # prompts of a round in which they are answered one by one
DECODED = 64  # tokens of each answer after its first, by which decoding is timed
LEAST_SECONDS = 0.5  # of work that an engine is timed by: a small model's round takes some milliseconds, and one of them says little
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
    """What both take in bytes and time (`speeds`), and the share of equal greedy answers."""
    answers = [_answers(folder, prompts) for folder in (parent, child)]
    before, after = speeds([parent, child], prompts)
    return {
        "bytes_before": weight_bytes(parent), "bytes_after": weight_bytes(child), "size_ratio": weight_bytes(child) / weight_bytes(parent),
        "tokens_per_second_before": before.tokens_per_second, "tokens_per_second_after": after.tokens_per_second,
        "speed_ratio": {batch: after.tokens_per_second[batch] / rate for batch, rate in before.tokens_per_second.items()},
        "prompt_ms_before": before.prompt_ms, "prompt_ms_after": after.prompt_ms,
        "greedy_agreement": sum(a == b for a, b in zip(*answers, strict=True)) / len(prompts), "questions": len(prompts),
    }  # fmt: skip


def _answers(folder: Path, prompts: Sequence[Prompt]) -> list[str]:
    with closing(open_engine(folder, threads=1)) as engine:
        return [completion.text for completion in engine.generate_all(prompts, ANSWER_TOKENS)]


@dataclass(frozen=True)
class Speed:
    """Of one model in the engine, by how many answers are given at a time: "batch_1", "batch_8", "batch_32"."""

    tokens_per_second: dict[str, float]  # of decoding: each answer from its first token to its last
    prompt_ms: dict[str, float]  # what comes before, of each prompt: to make tokens of it, to read it, to choose the first


def speeds(folders: Sequence[Path], prompts: Sequence[Prompt], together: Sequence[int] = TOGETHER) -> list[Speed]:
    """Of each model on one core, in processor time: a job runs beside others, and the clock would measure those.

    All write the same number of tokens after the same prompts, whatever they would say: an answer that ends early, or one that is babble, would
    make its model look slower or quicker than it is. The engines take turns, and each counts by its best rounds: other work makes rounds slower,
    never faster.
    """
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(open_engine(folder, threads=1, max_batch=max(together), endless=True))) for folder in folders]
        found = {f"batch_{number}": _best_rounds(engines, prompts, number) for number in together}
    return [
        Speed({batch: rounds[n].tokens_per_second for batch, rounds in found.items()}, {batch: rounds[n].prompt_ms for batch, rounds in found.items()})
        for n in range(len(folders))
    ]  # fmt: skip


@dataclass
class _Best:
    """Of one engine's rounds: the least seconds for the first tokens only, and for whole answers; what both wrote."""

    prompts: int
    seconds: dict[int, float] = field(default_factory=dict)  # most tokens of an answer → seconds
    tokens: dict[int, int] = field(default_factory=dict)
    worked: float = 0.0

    def ask(self, engine: Engine, asked: Sequence[Sequence[Prompt]], most: int) -> None:
        began = time.process_time()
        completions = [completion for together in asked for completion in engine.generate_all(together, most)]
        seconds = time.process_time() - began
        self.worked += seconds
        self.seconds[most] = min(self.seconds.get(most, seconds), seconds)
        self.tokens[most] = sum(completion.tokens for completion in completions)

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens[1 + DECODED] - self.tokens[1]) / max(self.seconds[1 + DECODED] - self.seconds[1], 1e-9)

    @property
    def prompt_ms(self) -> float:
        return 1000 * self.seconds[1] / self.prompts


def _best_rounds(engines: Sequence[Engine], prompts: Sequence[Prompt], together: int) -> list[_Best]:
    """As many rounds as it takes until each engine has worked for LEAST_SECONDS."""
    enough = list(islice(cycle(prompts), max(together, ALONE)))
    asked = [enough[start : start + together] for start in range(0, len(enough), together)]
    best = [_Best(len(enough)) for _ in engines]
    while min(one.worked for one in best) < LEAST_SECONDS:
        for one, engine in zip(best, engines, strict=True):
            for most in (1, 1 + DECODED):
                one.ask(engine, asked, most)
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
