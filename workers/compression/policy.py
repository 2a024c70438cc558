"""One button: try the methods in the order of what they cost, and keep the first that is good enough.

1. INT8: seconds, and a quarter of the bytes.
2. Pruning with recovery, then INT8: minutes.
3. Distillation, then INT8: minutes, and the least bytes.

Good enough: held-out BLEU at most so far below the parent's, and no more bytes than allowed. Every attempt leaves a row in the trail
with its measured figures and why it was kept or not. Where none is good enough, the one that comes nearest is handed on, and the trail
says so: the gate then decides.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.compression.distill import run_distill
from workers.compression.int8 import run_int8
from workers.compression.measure import compare, sample_prompts, weight_bytes
from workers.compression.prune import run_prune
from workers.compression.spec import CompressSpec
from workers.compression.telling import span, tell
from workers.engine import open_engine
from workers.evaluation.evaluate import ask, figures
from workers.evaluation.questions import QUESTION, HeldOut, read_held_out, sample
from workers.moe import load_tokenizer
from workers.moe.checkpoint import publish_folder
from workers.protocol import JobError

ANSWER_TOKENS = 64
SPARSITY = 0.3
MINUTES = 1.0  # of recovery, and of distillation, each

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A tried child. `result`: as a job's own."""

    folder: Path
    result: dict[str, Any]
    bleu: float
    good: bool


@dataclass(frozen=True)
class Limits:
    bleu: float  # at least
    bytes: int | None  # at most

    def shortfalls(self, bleu: float, size: int) -> list[str]:
        """What is not good enough, in words."""
        short = []
        if bleu < self.bleu:
            short.append(f"BLEU {bleu:.1f} is below the least of {self.bleu:.1f}")
        if self.bytes is not None and size > self.bytes:
            short.append(f"{size:,} bytes are more than the {self.bytes:,} allowed")
        return short


def run_policy(spec: CompressSpec) -> dict[str, Any]:
    rows = _held_out(spec)
    trail: list[Row] = []
    with span(0.0, 0.1, "Parent: "):
        parent = _evaluate(spec.model_folder, rows, spec)
    limits = _limits(spec, parent["bleu"])
    wanted = f"at least {limits.bleu:.1f} BLEU" + (f" and at most {limits.bytes:,} bytes" if limits.bytes else "")
    trail.append(_row("baseline", "measured", parent | {"bytes": weight_bytes(spec.model_folder)}, f"Wanted: {wanted}."))
    variants: list[Variant] = []
    for number, (name, attempt) in enumerate(_ATTEMPTS.items()):
        begin = 0.1 + 0.3 * number
        with span(begin, begin + 0.25, f"{name}: "):
            folder, result = attempt(spec, spec.work_folder / f"policy-{number}")
        with span(begin + 0.25, begin + 0.3, f"{name}: "):
            measured = _evaluate(folder, rows, spec)
        size = weight_bytes(folder)
        short = limits.shortfalls(measured["bleu"], size)
        variants.append(Variant(folder, result, measured["bleu"], not short))
        told = measured | {"bytes": size, "size_ratio": size / weight_bytes(spec.model_folder), "speed_ratio": result["details"]["speed_ratio"]}
        reason = f"{short[0] if len(short) == 1 else ' and '.join(short)}." if short else f"It keeps {wanted}; nothing dearer need be tried."
        trail.append(_row(name, "refused" if short else "chosen", told, reason[:1].upper() + reason[1:]))
        if not short:
            break
    chosen = _choose(variants, trail)
    publish_folder(chosen.folder, spec.output_folder)
    for variant in variants:
        shutil.rmtree(variant.folder, ignore_errors=True)
    return chosen.result | {"details": chosen.result["details"] | {"trail": trail, "bleu": chosen.bleu, "parent_bleu": parent["bleu"]}}


def _choose(variants: list[Variant], trail: list[Row]) -> Variant:
    if variants[-1].good:
        return variants[-1]
    best = max(variants, key=lambda variant: variant.bleu)
    trail[variants.index(best) + 1]["decision"] = "chosen"
    trail[variants.index(best) + 1]["reason"] += " It is handed on because the others lose more; the gate will say whether it may go live."
    return best


def _limits(spec: CompressSpec, parent_bleu: float) -> Limits:
    least = parent_bleu * spec.min_bleu_ratio if spec.min_bleu_ratio is not None else parent_bleu - spec.max_bleu_loss
    return Limits(least, spec.max_bytes)


def _row(step: str, decision: str, measured: dict[str, Any], reason: str) -> Row:
    return {"step": step, "decision": decision, "figures": measured, "reason": reason}


# -- the attempts


def _int8(spec: CompressSpec, folder: Path) -> tuple[Path, dict[str, Any]]:
    return folder, run_int8(_part(spec, "int8", spec.model_folder, folder))


def _prune(spec: CompressSpec, folder: Path) -> tuple[Path, dict[str, Any]]:
    return _then_int8(spec, folder, lambda part: run_prune(part.model_copy(update={"sparsity": SPARSITY, "structure": "neuron"})), "prune")


def _distill(spec: CompressSpec, folder: Path) -> tuple[Path, dict[str, Any]]:
    return _then_int8(spec, folder, lambda part: run_distill(part.model_copy(update={"student": spec.student})), "distill")


def _then_int8(spec: CompressSpec, folder: Path, method: Callable[[CompressSpec], dict[str, Any]], name: str) -> tuple[Path, dict[str, Any]]:
    """The method's model, rounded to 8 bits as well."""
    between = folder.with_name(f"{folder.name}-{name}")
    learning = {"steps": spec.steps, "minutes": None if spec.steps else spec.minutes or MINUTES}
    first = method(_part(spec, name, spec.model_folder, between).model_copy(update=learning))
    result = run_int8(_part(spec, "int8", between, folder))
    shutil.rmtree(between, ignore_errors=True)
    prompts = sample_prompts(spec.dataset_folder, load_tokenizer(folder), spec.seed)
    against_parent = compare(spec.model_folder, folder, prompts)  # not against the model between
    return folder, result | {"details": {**first["details"], **result["details"], **against_parent, "before_int8": first["kind"]}}


def _part(spec: CompressSpec, method: str, model: Path, output: Path) -> CompressSpec:
    update = {"method": method, "model_folder": model, "output_folder": output, "threshold": None, "sparsity": None, "steps": None, "minutes": None}
    return spec.model_copy(update=update)


_ATTEMPTS: dict[str, Callable[[CompressSpec, Path], tuple[Path, dict[str, Any]]]] = {
    "INT8": _int8,
    "pruning and INT8": _prune,
    "distillation and INT8": _distill,
}


# -- quality


def _held_out(spec: CompressSpec) -> list[HeldOut]:
    if spec.dataset_folder is None:
        raise JobError("The policy compares answers with held-out ones, and this model was not trained here. Choose a method yourself.")
    try:
        rows = [row for row in sample(read_held_out(spec.dataset_folder / "eval.jsonl"), spec.max_questions, spec.seed) if row.kind == QUESTION]
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"The dataset's held-out questions cannot be read ({error}). Process it again.") from error
    if not rows:
        raise JobError("The dataset holds no held-out question, so that quality cannot be measured. Process one with questions or knowledge entries.")
    return rows


def _evaluate(folder: Path, rows: list[HeldOut], spec: CompressSpec) -> dict[str, Any]:
    def report(done: int, seconds: float) -> None:
        tell(done / len(rows), f"{done} of {len(rows)} held-out questions answered", seconds / done * (len(rows) - done))

    tell(0.0, "Answering held-out questions")
    with closing(open_engine(folder, threads=spec.threads)) as engine:
        found = figures(rows, ask(engine, rows, ANSWER_TOKENS, time.monotonic, report), spec.seed)
    return {name: found[name] for name in ("bleu", "bleu_low", "bleu_high", "questions", "tokens_per_second")}
