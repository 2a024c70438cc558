"""S14: tokens a second at concurrency 1, 8 and 32, our engine beside transformers' `generate` on the same weights, in one run.

    python -m benchmarks.serving [--preset small] [--folder MODEL] [--threads 1] [--tokens 64]

Without a folder, a random model of the preset is made: speed does not depend on what the weights say. Prompts are of about 25 tokens,
answers of `--tokens`, greedy. The best of three rounds counts: other work on the machine only ever slows one down.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from workers.engine import Engine, open_engine
from workers.engine.torch_runner import open_torch_runner
from workers.moe import PRESETS, ChatTokenizer, Decoder, load_tokenizer, save_model

CONCURRENCY = (1, 8, 32)
ROUNDS = 3

Ask = Callable[[list[str], int], list[str]]


def random_model(preset: str, folder: Path) -> Path:
    texts = [f"What is entry {n}? It is the {n}th of {chr(0x4E00 + n)}{chr(0x5E00 + n)}." for n in range(4000)]
    tokenizer = ChatTokenizer.train(texts, PRESETS[preset].vocab_size)
    model = Decoder(PRESETS[preset].with_(vocab_size=tokenizer.vocab_size))
    model.initialise(torch.Generator().manual_seed(0))
    save_model(folder, model, tokenizer, "A random model, to measure speed on.")
    return folder


def prompts(tokenizer: ChatTokenizer, count: int) -> list[str]:
    """Questions of the same number of tokens, so that transformers need not pad."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        ids = tokenizer.encode(f"What is entry {number}, and why is it not the entry {number + 7} or {number * 3}?" * 2)[:23]
        text = tokenizer.decode(ids)
        if len(tokenizer.encode(text)) == 23:
            found.append(text)
    return found


def ask_engine(engine: Engine) -> Ask:
    def ask(questions: list[str], tokens: int) -> list[str]:
        return [c.text for c in engine.generate_all([[{"role": "user", "content": q}] for q in questions], tokens)]

    return ask


def ask_transformers(folder: Path, tokenizer: ChatTokenizer) -> Ask:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def ask(questions: list[str], tokens: int) -> list[str]:
        ids = torch.tensor([tokenizer.encode_prompt([{"role": "user", "content": q}]) for q in questions])
        with torch.inference_mode():
            answers = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        return [tokenizer.decode(answer[ids.shape[1] :].tolist()).strip() for answer in answers]

    return ask


def measure(ask: Ask, questions: list[str], tokens: int) -> float:
    """Tokens a second, the best of some rounds. A random model does not end its answers before their time."""
    ask(questions[:1], 4)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        ask(questions, tokens)
        best = min(best, time.perf_counter() - began)
    return len(questions) * tokens / best


def table(folder: Path, threads: int, tokens: int) -> str:
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(folder)
    questions = prompts(tokenizer, max(CONCURRENCY))
    fused = open_engine(folder, threads=threads)
    plain = Engine(open_torch_runner(folder, threads=threads, max_batch=32, max_seq_len=512), tokenizer)
    peers = {"transformers `generate`": ask_transformers(folder, tokenizer), "ours, PyTorch": ask_engine(plain), "ours": ask_engine(fused)}
    figures = {name: [measure(ask, questions[:n], tokens) for n in CONCURRENCY] for name, ask in peers.items()}
    answers = [ask(questions, tokens) for ask in peers.values()]
    fused.close()
    plain.close()
    same = sum(len(set(texts)) == 1 for texts in zip(*answers, strict=True))
    base = figures["transformers `generate`"]
    rows = [
        f"| {name} | " + " | ".join(f"{rate:,.0f} ({rate / peer:.1f}×)" for rate, peer in zip(rates, base, strict=True)) + " |"
        for name, rates in figures.items()
    ]  # fmt: skip
    head = "| tokens/s | " + " | ".join(f"concurrency {n}" for n in CONCURRENCY) + " |\n|---|" + "---|" * len(CONCURRENCY)
    return "\n".join(
        [head, *rows, "", f"{same} of {len(questions)} greedy answers are the same by all three. FP32, {threads} thread(s), {tokens} tokens each."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or random_model(given.preset, Path(temporary) / "model")
        print(f"Model: {given.folder or given.preset}\n\n{table(folder, given.threads, given.tokens)}")


if __name__ == "__main__":
    main()
