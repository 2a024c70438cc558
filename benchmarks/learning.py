"""What the smallest preset learns in minutes, through the real pipeline: processing, training and evaluation as child processes.

    python -m benchmarks.learning [--quick]

1. 600 of the demonstration's entries with its web pages, 100 seconds of training on all cores; each router once.
2. 240 entries that nobody here has tuned anything for: short descriptions of Debian's packages (`apt-cache dumpavail`, fetched now,
   not kept), one JSONL, 3 minutes.

BLEU is of held-out phrasings, with its 95 % interval; a falsehood is refused when the answer says no or names something else; the load
is that of the last fifty steps, in the layer where it is worst. Seconds are of training proper: reading and storing come on top, as told.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from workers.training import TrainSpec
from workers.training.launcher import command_line

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
THREADS = os.cpu_count() or 1
_HEADS = (
    "tool|program|library|utility|client|server|game|editor|viewer|framework|system|engine|toolkit|application|manager|player|parser|compiler|generator|"
    "daemon|language|emulator|browser|simulator|debugger|converter|monitor|scanner|calculator|database|proxy|interpreter|analyzer|analyser"
)
# "text-based address book application for …": a noun phrase in the singular, which "NAME is a …" makes a sentence of.
_NOUN_PHRASE = re.compile(rf"^[a-z][a-z-]+(?: [\w+#/-]+){{0,6}}? (?:{_HEADS})(?:$| (?:for|to|that|which|of|with|in|from|using|written|based)\b)")


def child(arguments: list[str], spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a child process to its end and return its result, as the `jobs` worker does. Its log goes to our stderr where it fails."""
    path = folder / "spec.json"
    path.write_text(json.dumps({"version": 1, **spec}, default=str))
    done = subprocess.run([*arguments, str(path)], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not events or events[-1]["event"] != "done":
        raise SystemExit(f"{' '.join(arguments[1:])} failed: {events[-1:]}\n{done.stderr[-2000:]}")
    result: dict[str, Any] = events[-1]["result"]
    return result


def module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def learn(inputs: list[Path], seconds: float, router: str) -> dict[str, Any]:
    """Process, train and evaluate. The evaluation's result and the training's, with the wall clock of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work").mkdir()
        began = time.monotonic()
        child(module("workers.corpus"), {"inputs": inputs, "output_folder": folder / "data", "work_folder": folder / "work"}, folder)
        processed = time.monotonic()
        spec = TrainSpec(
            dataset_folder=folder / "data", output_folder=folder / "model", work_folder=folder / "training", preset="nano", minutes=seconds / 60,
            router=router, threads=THREADS,  # type: ignore[arg-type]
        )  # fmt: skip
        trained = child(command_line(1), spec.model_dump(mode="json", exclude={"version"}), folder)
        done = time.monotonic()
        evaluated = child(
            module("workers.evaluation"),
            {"model_folder": folder / "model", "eval_file": folder / "data" / "eval.jsonl", "output_folder": folder / "answers", "threads": THREADS}, folder,
        )  # fmt: skip
        evaluated["samples"] = [json.loads(line) for line in (folder / "answers" / "answers.jsonl").read_text().splitlines()]
        clock = {"processing": processed - began, "training": done - processed, "evaluation": time.monotonic() - done}
    return {"trained": trained, "evaluated": evaluated, "clock": clock}


def demonstration(folder: Path, entries: int) -> list[Path]:
    """That many of its entries, of all domains, and its web pages."""
    lines = [line for path in sorted((DEMO / "knowledge").glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = folder / "entries.jsonl"
    chosen.write_text("".join(line + "\n" for line in random.Random(0).sample(lines, entries)), encoding="utf-8")
    return [chosen, *sorted((DEMO / "documents").glob("*.jsonl"))]


def debian(folder: Path, entries: int) -> list[Path] | None:
    """Entries "NAME is a …" of Debian's packages, one of each source; None where the machine has no such list."""
    if not shutil.which("apt-cache"):
        return None
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=False).stdout
    found = []
    for stanza in listed.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" "))
        name, said = fields.get("Package", ""), fields.get("Description", "")
        if "Source" not in fields and 30 < len(said) < 90 and _NOUN_PHRASE.match(said) and said.count("(") == said.count(")"):
            article = "an" if said[0] in "aeio" else "a"
            found.append({"title": name, "text": f"{name} is {article} {said.rstrip('.')}.", "domain": fields.get("Section", "").split("/")[-1]})
    if len(found) < entries:
        return None
    chosen = folder / "packages.jsonl"
    chosen.write_text("".join(json.dumps(entry) + "\n" for entry in random.Random(0).sample(found, entries)))
    return [chosen]


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def load_of(trained: dict[str, Any]) -> tuple[float, float]:
    """The busiest expert's share over the mean, and the idlest one's, each in its worst layer."""
    layers = trained["expert_load"]
    return max(max(layer) * len(layer) for layer in layers), min(min(layer) * len(layer) for layer in layers)


def row(title: str, seconds: float, found: dict[str, Any]) -> str:
    trained, evaluated = found["trained"], found["evaluated"]
    most, least = load_of(trained)
    return (
        f"| {title} | {seconds:.0f} | {trained['steps']:,} | {trained['tokens_per_second']:,.0f} | {evaluated['bleu']:.1f} "
        f"({evaluated['bleu_low']:.0f}–{evaluated['bleu_high']:.0f}) | {percent(evaluated['refusal_rate'])} | {percent(evaluated['false_alarm_rate'])} | "
        f"{evaluated['questions']} + {evaluated['claims']} | {most:.2f} | {least:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds of training on a few entries: shows that it runs, not what is learnt")
    quick = parser.parse_args().quick or bool(os.environ.get("BENCH_QUICK"))
    short, long = (6.0, 6.0) if quick else (100.0, 180.0)
    demonstrated, new = (60, 40) if quick else (600, 240)
    print(f"`nano`, PyTorch {torch.__version__}, Python {platform.python_version()}, {THREADS} threads\n")
    print(
        "| knowledge | seconds | steps | tokens/s | held-out BLEU (95 %) | falsehoods refused | false alarms | questions + claims | busiest / mean | idlest / mean |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    layers: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for router in ("softmax", "sigmoid"):
            found = learn(demonstration(Path(name), demonstrated), short, router)
            layers[router] = found["trained"]["expert_load"]
            print(row(f"the demonstration, {demonstrated} entries, router `{router}`", short, found), flush=True)
        packages = debian(Path(name), new)
        if packages is None:
            print("\nNo list of Debian packages is at hand, so the second part is left out.")
        else:
            found = learn(packages, long, "softmax")
            print(row(f"Debian packages, {new} entries, router `softmax`", long, found), flush=True)
            told = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in found["clock"].items())
            sample = found["evaluated"]["samples"][0]
            print(f"\nThe last one by the clock: {told}. Asked “{sample['question']}” it says: “{sample['answer']}”")
    print("\n| expert load / mean, by layer | busiest | idlest |\n|---|---|---|")
    for router, loads in layers.items():
        for number, load in enumerate(loads):
            print(f"| {router}, layer {number} | {max(load) * len(load):.2f} | {min(load) * len(load):.2f} |")


if __name__ == "__main__":
    main()
