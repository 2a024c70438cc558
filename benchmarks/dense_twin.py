"""A Mixture of Experts beside its dense twin of the same total size: tokens a second of answering and of training.

    python -m benchmarks.dense_twin [--quick]

Both are served by our engine on one thread and trained by our loop on all cores, in turns; weights are random, which moves no speed. The
`base` preset is far beyond the caches: 0.4 GB of FP32 weights. At concurrency 1 the twin reads all of its weights for a token and the
mixture those of the chosen experts; with more sequences at once their tokens choose different experts, and the mixture reads nearly all
too: what is left is the arithmetic. Answers are 48 tokens, their questions short.
"""

import argparse
import os
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.training import CPU, our_losses, our_model, trainer
from workers.engine import Engine, open_engine
from workers.moe import PRESETS, ChatTokenizer, ModelConfig, count_parameters, dense_twin, save_model
from workers.training import Example, Precision

CONCURRENCY = (1, 8, 32)
ANSWER_TOKENS = 48
EXAMPLE_TOKENS, BATCH = 48, 32  # of a training step
MOE, DENSE = "mixture of experts", "dense twin"


def store(config: ModelConfig, tokenizer: ChatTokenizer, folder: Path) -> Path:
    save_model(folder, our_model(config).eval(), tokenizer, "A random model, to measure speed on.")
    return folder


def answering(engines: dict[str, Engine], concurrency: int, tokens: int, turns: int) -> dict[str, list[float]]:
    """Tokens a second in each turn; the first, untimed, warms up."""
    questions = [[{"role": "user", "content": f"What is {n}?"}] for n in range(concurrency)]
    found: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(turns + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            answers = engine.generate_all(questions, tokens if turn else 2)
            if turn:
                found[name].append(sum(a.tokens for a in answers) / (time.perf_counter() - began))
    return found


def training(configs: dict[str, ModelConfig], precision: str, steps: int, turns: int) -> dict[str, list[float]]:
    """Tokens a second in each turn; the first, untimed, warms up. Examples are random: half question, half answer."""
    generator = np.random.default_rng(0)
    learnt = np.arange(EXAMPLE_TOKENS) >= EXAMPLE_TOKENS // 2
    vocabulary = next(iter(configs.values())).vocab_size
    batch = [Example(generator.integers(0, vocabulary, EXAMPLE_TOKENS, np.int32), learnt, "", 1.0) for _ in range(BATCH)]
    models = {name: our_model(config) for name, config in configs.items()}
    rows = {name: trainer(model, Precision(precision, CPU), our_losses(model)) for name, model in models.items()}  # type: ignore[arg-type]
    found: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns + 1):
        for name, step in rows.items():
            began = time.perf_counter()
            for _ in range(steps if turn else 1):
                step(batch)
            if turn:
                found[name].append(steps * BATCH * EXAMPLE_TOKENS / (time.perf_counter() - began))
    return found


def row(title: str, found: dict[str, list[float]]) -> str:
    ratio = median(moe / dense for moe, dense in zip(found[MOE], found[DENSE], strict=True))
    return f"| {title} | {median(found[MOE]):,.0f} | {median(found[DENSE]):,.0f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small preset and one short turn: shows that it runs, not how fast")
    quick = parser.parse_args().quick or bool(os.environ.get("BENCH_QUICK"))
    preset, turns = ("small", 1) if quick else ("base", 5)
    tokenizer = ChatTokenizer.train([f"What is entry {n}? It is the {n}th of {chr(0x4E00 + n)}{chr(0x5E00 + n)}." for n in range(4000)], 2048)
    configs = {MOE: PRESETS[preset], DENSE: dense_twin(PRESETS[preset])}
    print(f"`{preset}` on PyTorch {torch.__version__}, FP32 answers on 1 thread, training on {os.cpu_count()}\n")
    print("| | total parameters | active for a token | FP32 MB |\n|---|---|---|---|")
    for name, config in configs.items():
        total, active = count_parameters(config)
        print(f"| {name} | {total / 1e6:.1f} M | {active / 1e6:.1f} M | {total * 4 / 1e6:.0f} |")
    print(f"\n| tokens/s | {MOE} | {DENSE} | ratio |\n|---|---|---|---|", flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        engines = {}
        for number, (title, config) in enumerate(configs.items()):
            engines[title] = stack.enter_context(closing(open_engine(store(config, tokenizer, Path(name) / str(number)), threads=1, max_seq_len=256)))
        for concurrency in CONCURRENCY:
            found = answering(engines, concurrency, 8 if quick else ANSWER_TOKENS, turns)
            print(row(f"answering, concurrency {concurrency}", found), flush=True)
    torch.set_num_threads(os.cpu_count() or 1)
    for precision in ("bf16", "fp32"):
        print(row(f"training, {precision.upper()}", training(configs, precision, 1 if quick else 2, 1 if quick else 3)), flush=True)


if __name__ == "__main__":
    main()
