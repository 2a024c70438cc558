"""S14: tokens a second at concurrency 1, 8 and 32: our engine beside transformers' `generate` and llama.cpp on the same weights, and the limit.

    python -m benchmarks.serving [--threads 1] [--tokens 128] [--quick]

Random models of 12.7 M parameters (`small` with an output layer of its own) and of the preset `nano`: speed does not depend on what weights say.
Peers get them as Mixtral, whose formula is ours where the router's bias is zero, as it is here. Prompts of 25 tokens, greedy answers of `--tokens` and of a
quarter of that; the rate is what lies between the two, decoding alone: the prompts, and what is handed over before the first step, are in both. All take turns
and each counts by its best round: other work on the machine only ever slows one down. The greedy answers of the FP32 rows are compared first, token by token.

llama.cpp is measured where `LLAMA_CPP_PYTHON` names a Python that has llama-cpp-python (`_llama_cpp.py` says how it is asked): in F32 throughout, where it does
the same work as we do, and as it is by default, where its attention rounds to F16.
"""

import argparse
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from random import Random

import numpy as np
import torch

from benchmarks._serving_limits import Reading, chosen_experts, fp32_peak, multiplied
from benchmarks._serving_peers import INSTALL, LlamaCpp, Ours, Peer, Transformers, llama_python
from benchmarks.int8 import int8_peak
from workers.compression.int8 import run_int8
from workers.compression.spec import CompressSpec
from workers.engine import open_engine
from workers.moe import PRESETS, ChatTokenizer, Decoder, ModelConfig, count_parameters, load_model, load_tokenizer, save_model

CONCURRENCY = (1, 8, 32)
ROUNDS = 5
OURS, OURS_INT8, TRANSFORMERS, LLAMA_Q8 = "ours, FP32", "ours, INT8", "transformers `generate`, FP32", "llama.cpp, Q8_0"
LLAMA, LLAMA_ROUNDED = "llama.cpp, F32", "llama.cpp, F32, attention in F16"
BESIDE = {TRANSFORMERS: OURS, LLAMA: OURS, LLAMA_ROUNDED: OURS, LLAMA_Q8: OURS_INT8}  # which of ours stands beside a peer
SHORT = 4  # the part of an answer that rates begin after


def random_model(preset: str, folder: Path, **changes) -> Path:
    """A model that never ends an answer by itself. `changes`: to the preset's configuration."""
    drawn = Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)]
    texts = [f"What is entry {n}, the {words[n % 2000]}? It is the {n}th of {chr(0x4E00 + n)}{chr(0x5E00 + n)}." for n in range(4000)]
    tokenizer = ChatTokenizer.train(texts, PRESETS[preset].vocab_size)
    model = Decoder(PRESETS[preset].with_(vocab_size=tokenizer.vocab_size, **changes))
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)  # as spread as trained ones: answers go through many tokens and all experts
        model.head.weight[tokenizer.end_id] = 0  # its logit is 0: some other one is always greater
    save_model(folder, model, tokenizer, "A random model, to measure speed on.")
    return folder


def as_mixtral(model: Decoder, tokenizer: ChatTokenizer, folder: Path) -> Path:
    """The same weights, without the router's bias, which is zero."""
    made = Decoder(model.config.with_(router_bias=False))
    made.load_state_dict(model.state_dict())
    save_model(folder, made, tokenizer, "The same model for others.")
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


def quantized(folder: Path, work: Path) -> Path:
    work.mkdir()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        run_int8(CompressSpec(method="int8", model_folder=folder, output_folder=work / "int8", work_folder=work))
    return work / "int8"


def decode_rates(peers: dict[str, Peer], questions: list[str], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens/s at each concurrency."""
    short = tokens // SHORT
    best = {name: np.full((len(CONCURRENCY), 2), np.inf) for name in peers}
    for _ in range(rounds + 1):  # in the first the prompts are read, which our engine remembers then
        for at, together in enumerate(CONCURRENCY):
            for name, peer in peers.items():
                best[name][at] = np.minimum(best[name][at], [peer.seconds(questions[:together], length) for length in (short, tokens)])
    return {
        name: [n * (tokens - short) / (whole - part) for n, (part, whole) in zip(CONCURRENCY, found, strict=True)] for name, found in best.items()
    }


def agreement(ours: Peer, others: dict[str, Peer], questions: list[str], tokens: int) -> list[str]:
    """Whose greedy answers are ours, and where others part."""
    said, told = ours.tokens(questions, tokens), []
    for name, peer in others.items():
        theirs = peer.tokens(questions, tokens)
        parted = sorted(next(at for at in range(tokens) if a[at] != b[at]) for a, b in zip(said, theirs, strict=True) if a != b)
        where = f" (the others part after {', '.join(map(str, parted))} tokens)" if parted else ""
        told.append(f"{name}: {len(questions) - len(parted)} of {len(questions)} greedy answers are ours, token by token{where}.")
    return told


def limit_row(name: str, config: ModelConfig, reading: Reading, read: list[float], peak: float, rates: list[float]) -> tuple[str, str]:
    """The row, and what it was reckoned from."""
    most = [min(rate, peak / multiplied(config)) for rate in read]
    cells = [f"{limit:,.0f} ({rate / limit:.0%})" for rate, limit in zip(rates, most, strict=True)]
    speeds = ", ".join(f"{rate / n * reading.read_bytes(n) / 1e9:.0f}" for n, rate in zip(CONCURRENCY, read, strict=True))
    return f"| limit of {name} (we reach) | " + " | ".join(cells) + " |", f"{name}: {speeds} GB/s, {2 * peak / 1e9:,.0f} GFLOP/s"


def table(title: str, folder: Path, work: Path, threads: int, tokens: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    tokenizer, (model, _) = load_tokenizer(folder), load_model(folder)
    questions = prompts(tokenizer, max(CONCURRENCY))
    int8, mixtral = quantized(folder, work), as_mixtral(model, tokenizer, work / "mixtral")
    peers: dict[str, Peer] = {OURS: Ours(open_engine(folder, threads)), TRANSFORMERS: Transformers(mixtral)}
    python = llama_python()
    if python:
        peers[LLAMA] = LlamaCpp(mixtral, "F32", threads, python, exact=True)
        peers[LLAMA_ROUNDED] = LlamaCpp(mixtral, "F32", threads, python)
    same = agreement(peers[OURS], {name: peer for name, peer in peers.items() if name != OURS}, questions, tokens)
    peers[OURS_INT8] = Ours(open_engine(int8, threads))
    if python:
        peers[LLAMA_Q8] = LlamaCpp(mixtral, "Q8_0", threads, python)
    asked = [tokenizer.encode_prompt([{"role": "user", "content": question}]) for question in questions]
    chosen = chosen_experts(model, [prompt + answer for prompt, answer in zip(asked, peers[OURS].tokens(questions, tokens), strict=True)], tokens)
    read = {name: Reading(model.config, chosen, bits, threads) for name, bits in (("FP32", 32), ("INT8", 8))}
    found = decode_rates(peers | read, questions, tokens, rounds)
    for peer in peers.values():
        peer.close()

    total, active = (n / 1e6 for n in count_parameters(model.config))
    print(f"\n**{title}: {total:.1f} M parameters, {active:.1f} M for a token**\n")
    print("| decode tokens/s | " + " | ".join(f"{n} at once" for n in CONCURRENCY) + " |\n|---|" + "---|" * len(CONCURRENCY))
    for name in peers:
        rates = found[name]
        if name == OURS:
            beside = [f"{rate:,.0f}" for rate in rates]
        elif name == OURS_INT8:
            beside = [f"{rate:,.0f} ({rate / fp32:.2f}× our FP32)" for rate, fp32 in zip(rates, found[OURS], strict=True)]
        else:
            beside = [f"{rate:,.0f} (ours is {ours / rate:.2f}×)" for rate, ours in zip(rates, found[BESIDE[name]], strict=True)]
        print(f"| {name} | " + " | ".join(beside) + " |")
    fp32 = limit_row("FP32", model.config, read["FP32"], found["FP32"], threads * fp32_peak(), found[OURS])
    of_int8 = limit_row("INT8", model.config, read["INT8"], found["INT8"], threads * int8_peak(), found[OURS_INT8])
    print("\n".join([fp32[0], of_int8[0], "", *same, f"The limits: {fp32[1]}; {of_int8[1]}."]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="shorter answers, two rounds")
    given = parser.parse_args()
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    tokens, rounds = (64, 1) if quick else (given.tokens, ROUNDS)
    print(
        f"{given.threads} thread(s), answers of {tokens} tokens. The limit: a loop that only reads the weights which each step of these answers "
        "needs, or multiply-adds ÷ the peak, whichever is less."
    )
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for title, preset, changes in (("`small`, output layer of its own", "small", {"tie_embeddings": False}), ("`nano`", "nano", {})):
            folder = random_model(preset, work / preset, **changes)
            table(title, folder, work / f"{preset}-work", given.threads, tokens, rounds)
    if not llama_python():
        print(f"\n{INSTALL}")


if __name__ == "__main__":
    main()
