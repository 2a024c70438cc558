"""What a small model sees: exact answers on held-out pictures, and whether its experts part text from pictures.

    python -m benchmarks.pictures [MINUTES]

The `nano` preset learns `python -m demo.pictures` (three questions about each of 8,000 pictures of 32 × 32) on all cores, through the
trainer itself. Held-out pictures show combinations of shape, colour and count that it was never taught; the baseline is the answer
that is most frequent for the kind and language of the question. An answer counts when it is right to the letter.

Mutual information: bits that a token's experts tell of whether it is text or a patch of a picture, of at most the entropy of that.
"""

import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import orjson

from demo.pictures import records
from workers.engine import open_engine
from workers.moe import asking
from workers.training.spec import TrainSpec
from workers.training.train import train

PICTURES = 8000
MOST_ASKED = 1200
HEAD_QUESTIONS = ("shape", "colour", "count")


def most_frequent(rows: list[dict[str, Any]]) -> Callable[[dict[str, Any]], str]:
    """The answer that a model without eyes would best give."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row["domain"], row["lang"]][row["answer"]] += 1
    return lambda row: counts[row["domain"], row["lang"]].most_common(1)[0][0]


def main() -> None:
    quick = bool(os.environ.get("BENCH_QUICK"))
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 0.1 if quick else 4.0
    rows = list(records(300 if quick else PICTURES, seed=0))
    taught, held_out = ([row for row in rows if row["split"] == split] for split in ("train", "eval"))
    held_out = held_out[:MOST_ASKED]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, part in (("train.jsonl", taught), ("eval.jsonl", held_out)):
            (folder / file).write_bytes(b"".join(orjson.dumps({"kind": "question", **row}) + b"\n" for row in part))
        spec = TrainSpec(
            dataset_folder=folder, output_folder=folder / "model", work_folder=folder / "work", minutes=minutes, threads=os.cpu_count() or 1,
            sample_every_seconds=1e6,
        )  # fmt: skip
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # the trainer's events are for its parent
            result = train(spec)
        assert result is not None
        engine = open_engine(folder / "model", threads=os.cpu_count() or 1)
        answers = engine.generate_all([[asking(row["question"], row["image"])] for row in held_out], max_tokens=16)
        engine.close()

    guess = most_frequent(taught)
    print("| held-out pictures asked for | questions | right | most frequent answer |\n|---|---|---|---|")
    for kind in HEAD_QUESTIONS:
        asked = [(row, answer) for row, answer in zip(held_out, answers, strict=True) if row["domain"] == kind]
        right = sum(answer.text == row["answer"] for row, answer in asked) / len(asked)
        blind = sum(guess(row) == row["answer"] for row, _ in asked) / len(asked)
        print(f"| {kind} | {len(asked)} | {right:.1%} | {blind:.1%} |")
    print(f"\n{result['steps']:,} steps in {result['seconds']:.0f} s, {result['tokens_per_second']:,.0f} tokens/s, loss {result['loss']:.3f}.\n")
    modality = result["specialisation"]["modality"]
    print(f"| layer | bits that the experts tell of text or picture (of {modality['entropy']:.2f}) |\n|---|---|")
    for number, bits in enumerate(modality["layers"], start=1):
        print(f"| {number} | {bits:.2f} |")


if __name__ == "__main__":
    main()
