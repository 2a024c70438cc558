"""How often the classifier tells the right domain of a text that it has not seen.

    python -m benchmarks.classification [FILE.jsonl …]

Without a file: the demonstration's entries and web pages (28 domains, two languages). Any JSONL with `text` and `domain` can be
given, for instance Debian's package descriptions with their sections. One group of texts in five is held out; near-duplicates
are removed before, since they would be on both sides. Two rows show what the known words of the fields add
(domain_words.txt; its author knew what the demonstration is about, which flatters the demonstration's figure, so look at a
file of your own as well).
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from workers.corpus.classify import ClassifierReport, Example, examples_from, hints_for, measure
from workers.corpus.clean import clean
from workers.corpus.deduplicate import deduplicate
from workers.corpus.pipeline import read

DEMO = Path(__file__).resolve().parents[1] / "demo"
SEEDS = (0, 1, 2)


def evaluate(name: str, examples: Sequence[Example], hints: Sequence[Example], folder: Path) -> str:
    began = time.process_time()
    found: list[ClassifierReport] = [measure(examples, hints, folder, seed) for seed in SEEDS]
    seconds = (time.process_time() - began) / len(SEEDS)
    accuracies = [m.accuracy for m in found if m.accuracy is not None]
    held_out = round(mean(m.held_out for m in found))
    return f"| {name} | {len({e.domain for e in examples})} | {len(examples):,} | {held_out:,} | {mean(accuracies):.3f} ± {stdev(accuracies):.3f} | {seconds:.1f} |"


def main() -> None:
    given = [Path(argument) for argument in sys.argv[1:]]
    paths = given or sorted(DEMO.rglob("*.jsonl"))
    examples = examples_from(deduplicate(clean(read(paths))))
    hints = hints_for(examples)
    print("| | domains | labelled texts | held out | accuracy (3 splits) | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(evaluate("labelled texts alone", examples, [], folder), flush=True)
        if hints:
            print(evaluate("with the known words of their fields", examples, hints, folder), flush=True)
        measured = measure(examples, hints, folder, SEEDS[0])
    print("\n| domain | held out | accuracy |\n|---|---|---|")
    for domain, accuracy in measured.per_domain.items():
        print(f"| {domain} | {measured.held_out_rows[domain]} | {accuracy:.2f} |")


if __name__ == "__main__":
    main()
