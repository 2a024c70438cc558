"""Attention with sinks or a window, in blocks of queries and written out: memory and time of one layer, forward and backward.

Each form runs in a process of its own; its memory is what resides beyond the inputs at the most (VmHWM after a reset, on Linux).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HEADS, KEY_HEADS, WIDTH = 8, 2, 32
WINDOW = 128  # gpt-oss's
LENGTHS = (1024,) if os.environ.get("BENCH_QUICK") else (1024, 4096)
REPEATS = 3


def resident(field: str) -> int:
    return 1024 * int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)))


def measure(form: str, length: int, window: int) -> dict[str, float]:
    import torch

    from workers.moe.attention import as_bias, attend_packed, slide
    from workers.moe.blockwise import attend_in_blocks

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def inputs(tokens: int) -> list[torch.Tensor]:
        shapes = (1, HEADS, tokens, WIDTH), (1, KEY_HEADS, tokens, WIDTH), (1, KEY_HEADS, tokens, WIDTH), (HEADS,)
        return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> None:
        if form == "blocks":
            out = attend_in_blocks(q, k, v, None, window, WIDTH**-0.5, sinks)
        else:
            out = attend_packed(q, k, v, as_bias(slide(None, window, q.shape[2], 0, q.device)), WIDTH**-0.5, sinks)
        out.sum().backward()

    run(*inputs(256))  # what a first run brings in by itself
    tensors = inputs(length)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run(*tensors)
        seconds.append(time.perf_counter() - began)
    return {"bytes": resident("VmHWM") - before, "seconds": statistics.median(seconds)}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
        return
    print(f"One layer, {HEADS} heads of {WIDTH} on {KEY_HEADS}, FP32, one thread, forward and backward.\n")
    print(f"| tokens | window | written out MB | in blocks MB | written out ms | in blocks ms |\n|{'---|' * 6}")
    for length in LENGTHS:
        for window in (0, WINDOW):
            found = {}
            for form in ("written out", "blocks"):
                argv = [sys.executable, "-m", "benchmarks.attention", form, str(length), str(window)]
                found[form] = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
            plain, blocks = found["written out"], found["blocks"]
            print(
                f"| {length:,} | {window or 'none'} | {plain['bytes'] / 1e6:,.0f} | {blocks['bytes'] / 1e6:,.0f} | {plain['seconds'] * 1e3:,.0f} | "
                f"{blocks['seconds'] * 1e3:,.0f} |"
            )


if __name__ == "__main__":
    main()
