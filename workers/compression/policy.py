"""One button: try the methods in the order of what they cost, and keep the first that is good enough.

1. INT8: seconds, and a quarter of the bytes.
2. Mixed precision: where INT8 loses too much of the quality only, its most sensitive matrices stay FP32.
3. Pruning of neurons with recovery, and its INT8: what is left knows nearly all, and is mended in a minute.
4. Distillation, and the student's INT8: minutes, and the least bytes.

What learns is first tried out as a shape that has learnt nothing: where its bytes or its speed fall short in INT8 too, those who follow have its time.

Good enough: every constraint holds (BLEU, bytes, P99, speed). Each attempt leaves a row in the trail with its measured figures and why it was kept
or not. Where none is good enough, the one that keeps most of the quality is handed on, and the trail says so: the gate then decides.

All of it keeps to one number of minutes: what learns ends when it has learnt enough, or when its part of what is left is used up.

What is finished is written down in the work folder: a policy that is cut off goes on after its last finished attempt, and a distillation within it
from its own checkpoint.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workers.compression.constraints import JUDGED_AT, JUDGED_TOGETHER, Constraints, Figures, pareto
from workers.compression.distill import run_distill, save_untaught
from workers.compression.int8 import run_int8, save_int8
from workers.compression.measure import TOGETHER, Prompt, compare, sample_prompts, speeds, weight_bytes
from workers.compression.onnx_export import run_onnx
from workers.compression.prune import run_prune, save_unrecovered
from workers.compression.quality import evaluate, held_out
from workers.compression.sensitivity import run_mixed
from workers.compression.spec import STUDENT_PARAMETERS, STUDENT_SPEED, CompressSpec
from workers.compression.telling import span
from workers.evaluation.questions import HeldOut
from workers.moe import count_parameters, load_tokenizer, read_config
from workers.moe.checkpoint import publish_folder
from workers.protocol import JobError

SPARSITY = 0.5  # of the hidden units
MINUTES = 4.5  # of the whole policy
RECOVERY_SHARE, DISTILL_SHARE = 0.2, 0.85  # of the minutes that are left; what then remains is for measuring
LEAST_MINUTES = 0.1  # of learning: what was measured slowly should not leave a student that has learnt nothing
INT8_BYTES, INT8_SPEED = 1.3, 1.3  # of a small model: a parameter's bytes, with scales and what is not rounded; and, at least, its speed for FP32's
MISSED_BY_CHANCE = 0.05  # of the speed that is wanted: a shape whose trial is nearer is taught, and measured again
NARROWER = (("sparsity", SPARSITY), ("structure", "neuron"))
BASELINE = "baseline"

Row = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A tried child. `result`: as a job's own; `above`: results of the models between it and the parent, each with its `folder`."""

    step: str
    folder: Path
    result: Result
    above: list[Result]
    figures: Figures
    seconds: float  # that it took


@dataclass(frozen=True)
class Attempt:
    """`make` gives a child of the model in `model_folder`; `of`: the attempt whose child that model is, else the parent.

    `save_shape` writes one of its bytes and speed, which has learnt nothing and of which nothing is measured; without it `make` does.
    """

    step: str
    method: str
    make: Callable[[CompressSpec], Result]
    share: float  # of the job's progress
    save_shape: Callable[[CompressSpec], object] | None = None
    of: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    learns: float = 0.0  # for at most this share of the minutes that are left
    only_for_quality: bool = False  # it makes INT8 larger and no faster: worth trying only where quality is all that lacks


def attempts(spec: CompressSpec) -> list[Attempt]:
    """In order. For onnxruntime, every 8-bit model is an INT8 graph, and mixed precision, which only our engine reads, is left out."""
    small: dict[str, Any]
    if spec.target == "onnx":
        small = {"method": "onnx", "make": run_onnx, "options": (("weights", "int8"),)}
    else:
        small = {"method": "int8", "make": run_int8, "save_shape": save_int8}
    name = "INT8 ONNX" if spec.target == "onnx" else "INT8"
    every = [
        Attempt(name, share=0.1, **small),
        Attempt("mixed precision", "int8", run_mixed, 0.1, only_for_quality=True),
        Attempt("pruning", "prune", partial(run_prune, draws_curve=False), 0.2, save_unrecovered, options=NARROWER, learns=RECOVERY_SHARE),
        Attempt(f"pruning and {name}", of="pruning", share=0.05, **small),
        Attempt("distillation", "distill", run_distill, 0.4, save_untaught, options=student_of(spec), learns=DISTILL_SHARE),
        Attempt(f"distillation and {name}", of="distillation", share=0.1, **small),
    ]
    return [attempt for attempt in every if spec.target != "onnx" or attempt.make is not run_mixed]


def student_of(spec: CompressSpec) -> tuple[tuple[str, Any], ...]:
    """The usual one; a smaller or a quicker one only where that would not keep the limits in INT8 either: steps are what minutes are short of."""
    share, speed = STUDENT_PARAMETERS, max(STUDENT_SPEED, (spec.min_speed_ratio or 0.0) / INT8_SPEED)
    if spec.max_bytes is not None:
        share = min(share, spec.max_bytes / (INT8_BYTES * count_parameters(read_config(spec.model_folder))[0]))
    return (("student", spec.student), ("student_parameters", share), ("student_speed", speed))


def run_policy(spec: CompressSpec) -> Result:
    policy = _Policy(spec, held_out(spec))
    with span(0.0, 0.05, "Parent: "):
        parent = policy.baseline()
    limits = Constraints.of(spec, parent.bleu)
    trail: list[Row] = [_row(BASELINE, "measured", parent, [f"Wanted: {limits.wanted}.", *_plan(spec)], parent)]
    begin, chosen = 0.05, None
    planned = attempts(spec)
    for number, attempt in enumerate(planned):
        with span(begin, begin, f"{attempt.step}: "):
            why = policy.hopeless(attempt, planned[number + 1 :], limits)
        if why:
            trail.append({"step": attempt.step, "decision": "skipped", "figures": {}, "reasons": [why], "reason": why})
            begin += attempt.share
            continue
        with span(begin, begin + attempt.share, f"{attempt.step}: ", seconds_after=policy.seconds_of(planned[number + 1 :])):
            variant = policy.try_out(attempt)
        begin += attempt.share
        short = limits.shortfalls(variant.figures, servable=_is_servable(attempt, spec))
        reasons = [_sentence(what) for what in short] or [f"It keeps {limits.wanted}; nothing dearer need be tried."]
        trail.append(_row(attempt.step, "refused" if short else "chosen", variant.figures, reasons, parent))
        if not short:
            chosen = variant
            break
    chosen = chosen or _least_bad(policy.variants, trail, spec)
    return policy.hand_on(chosen, trail, parent)


def _plan(spec: CompressSpec) -> list[str]:
    """What is about to be done, in sentences."""
    first = "an INT8 graph" if spec.target == "onnx" else "INT8, with mixed precision where only quality lacks"
    order = f"Plan: {first}; then pruning, then distillation, each in INT8 too; until one is good enough."
    return [order] if spec.steps else [order, f"It takes at most {spec.minutes or MINUTES:g} minutes."]


def _is_servable(attempt: Attempt, spec: CompressSpec) -> bool:
    """For onnxruntime, a model that is no graph yet is a step on the way only."""
    return spec.target != "onnx" or attempt.method == "onnx"


def _least_bad(variants: list[Variant], trail: list[Row], spec: CompressSpec) -> Variant:
    candidates = [v for v in variants if spec.target != "onnx" or v.result["kind"] == "onnx"]
    best = max(candidates, key=lambda variant: variant.figures.bleu)
    row = next(row for row in trail if row["step"] == best.step)
    row["decision"] = "chosen"
    row["reasons"].append(
        "Nothing that was tried is good enough; this keeps most of the quality and is handed on, and the gate will say whether it may go live."
    )
    row["reason"] = " ".join(row["reasons"])
    return best


def _sentence(what: str) -> str:
    return f"{what[:1].upper()}{what[1:]}."


def _row(step: str, decision: str, figures: Figures, reasons: list[str], parent: Figures) -> Row:
    """`reasons`: sentences that a page can translate one by one; `reason` holds them all."""
    told: dict[str, Any] = asdict(figures)
    if step != BASELINE:
        told |= {"size_ratio": figures.bytes / parent.bytes}
    return {"step": step, "decision": decision, "figures": told, "reasons": reasons, "reason": " ".join(reasons)}


def _speed(ratios: dict[str, float]) -> dict[str, Any]:
    """As `Figures` has it."""
    return {"speed_ratio": ratios[JUDGED_AT], "speed_ratios": ratios}


class _Policy:
    """Makes and measures variants, and remembers them in the work folder."""

    def __init__(self, spec: CompressSpec, rows: list[HeldOut]):
        self.spec, self.rows = spec, rows
        self.variants: list[Variant] = []
        self._parent_bytes = weight_bytes(spec.model_folder)
        self._began, self._spent_before, self._measuring = time.monotonic(), 0.0, 0.0

    def baseline(self) -> Figures:
        began = time.monotonic()
        measured = evaluate(self.spec.model_folder, self.rows, self.spec)
        self._measuring = time.monotonic() - began
        return Figures(**measured, bytes=self._parent_bytes, **_speed({f"batch_{together}": 1.0 for together in TOGETHER}))

    def hopeless(self, attempt: Attempt, later: Sequence[Attempt], limits: Constraints) -> str | None:
        """Why it need not be tried: nothing of it would help. `later`: the attempts behind it."""
        if attempt.only_for_quality:
            last = self.variants[-1].figures
            if limits.shortfalls(last) != limits.shortfalls_of_quality(last):
                return "INT8 with some matrices left FP32 is larger than INT8 and no faster, and quality is not all that lacked."
        if attempt.learns and (why := self._hopeless_shape(attempt, [one for one in later if one.of == attempt.step], limits)):
            return why
        if attempt.of and not any(variant.step == attempt.of for variant in self.variants):
            return f"There is no model from {attempt.of} to go on from."
        return None

    def _hopeless_shape(self, attempt: Attempt, smaller: Sequence[Attempt], limits: Constraints) -> str | None:
        """Why learning would not help: neither bytes nor speed depend on what weights say. `smaller`: the attempts that go on from it, in INT8.

        None where its shape, or one of those, would do.
        """
        if limits.takes_any_shape or self._remembered(self._folder(attempt)):
            return None
        tried = [attempt, *smaller]
        folders = [self.spec.work_folder / f"policy-shape-{number}" for number in range(len(tried))]
        parents = [self.spec.model_folder] + folders[:1] * len(smaller)
        parts = [self._part(*each, {"steps": None, "minutes": None}) for each in zip(tried, parents, folders, strict=True)]
        try:
            for one, part in zip(tried, parts, strict=True):
                (one.save_shape or one.make)(part)
            whole, *rates = (
                speed.tokens_per_second[JUDGED_AT]
                for speed in speeds([self.spec.model_folder, *folders], self._prompts(folders[0]), (JUDGED_TOGETHER,))
            )
            lacks = [limits.shortfalls_of_shape(weight_bytes(f), rate / whole, MISSED_BY_CHANCE) for f, rate in zip(folders, rates, strict=True)]
        except JobError as error:
            return str(error)
        finally:
            for part in parts:
                shutil.rmtree(part.output_folder, ignore_errors=True)
                shutil.rmtree(part.work_folder, ignore_errors=True)
        return f"As small as {attempt.step} makes it, in INT8, it would not do: {', and '.join(lacks[-1])}." if all(lacks) else None

    def _folder(self, attempt: Attempt) -> Path:
        return self.spec.work_folder / f"policy-{attempt.step.replace(' ', '-').lower()}"

    def try_out(self, attempt: Attempt) -> Variant:
        folder = self._folder(attempt)
        if variant := self._remembered(folder):
            self._spent_before += variant.seconds
        else:
            variant = self._make(attempt, folder)
        self.variants.append(variant)
        return variant

    def _length(self, attempt: Attempt) -> dict[str, Any]:
        """How long an attempt learns at most."""
        if self.spec.steps or not attempt.learns:
            return {"steps": self.spec.steps if attempt.learns else None, "minutes": None}
        return {"steps": None, "minutes": max(LEAST_MINUTES, self._seconds_left / 60 * attempt.learns)}

    @property
    def _seconds_left(self) -> float:
        return 60 * (self.spec.minutes or MINUTES) - (time.monotonic() - self._began + self._spent_before)

    def seconds_of(self, planned: Sequence[Attempt]) -> float:
        """That these take, if none of them is good enough."""
        left = begun = max(0.0, self._seconds_left)
        for attempt in planned:
            left -= left * attempt.learns + 2 * self._measuring
        return begun - left if planned else 0.0

    def _part(self, attempt: Attempt, parent: Path, folder: Path, length: dict[str, Any]) -> CompressSpec:
        """The attempt as a job of its own."""
        return self.spec.model_copy(
            update={
                "method": attempt.method, "model_folder": parent, "output_folder": folder, "work_folder": folder.with_name(f"{folder.name}-work"),
                "threshold": None, "sparsity": None, "until_good": True, **length, **dict(attempt.options),
            }
        )  # fmt: skip

    def _make(self, attempt: Attempt, folder: Path) -> Variant:
        origin = next((variant for variant in self.variants if variant.step == attempt.of), None)
        began = time.monotonic()
        part = self._part(attempt, origin.folder if origin else self.spec.model_folder, folder, self._length(attempt))
        with span(0.0, 0.8):
            result = attempt.make(part)
        with span(0.8, 1.0):
            measured = evaluate(folder, self.rows, self.spec)
        measured_already = not origin and "speed_ratio" in result["details"]
        against = result["details"] if measured_already else self._against_parent(folder)  # the first parent, not the model between
        figures = Figures(**measured, bytes=weight_bytes(folder), **_speed(against["speed_ratio"]))
        above = [*origin.above, origin.result | {"folder": origin.folder.name}] if origin else []
        variant = Variant(attempt.step, folder, result | {"details": result["details"] | against}, above, figures, time.monotonic() - began)
        kept = folder.with_suffix(".json")
        temporary = kept.with_suffix(".tmp")
        temporary.write_text(json.dumps({**asdict(variant), "folder": folder.name}))
        temporary.rename(kept)
        shutil.rmtree(part.work_folder, ignore_errors=True)
        return variant

    def _against_parent(self, folder: Path) -> dict[str, Any]:
        return compare(self.spec.model_folder, folder, self._prompts(folder))

    def _prompts(self, folder: Path) -> list[Prompt]:
        return sample_prompts(self.spec.dataset_folder, load_tokenizer(folder), self.spec.seed)

    def _remembered(self, folder: Path) -> Variant | None:
        """What an earlier start of this job finished."""
        try:
            found = json.loads(folder.with_suffix(".json").read_text())
        except (OSError, ValueError):
            return None
        if not (folder / "config.json").exists():
            return None
        return Variant(**(found | {"folder": folder, "figures": Figures(**found["figures"])}))

    def hand_on(self, chosen: Variant, trail: list[Row], parent: Figures) -> Result:
        """The chosen model goes to the output folder; those above it stay in the work folder, where their names in `above` find them."""
        publish_folder(chosen.folder, self.spec.output_folder)
        chosen.folder.with_suffix(".json").unlink(missing_ok=True)
        needed = {result["folder"] for result in chosen.above}
        for variant in self.variants:
            if variant is not chosen and variant.folder.name not in needed:
                shutil.rmtree(variant.folder, ignore_errors=True)
        best = [asdict(figures) for figures in pareto([parent, *(variant.figures for variant in self.variants)])]
        for row in trail:
            row["front"] = any(row["figures"].items() >= figures.items() for figures in best)
        details = chosen.result["details"] | {"trail": trail, "bleu": chosen.figures.bleu, "parent_bleu": parent.bleu, "step": chosen.step}
        return chosen.result | {"details": details, "above": chosen.above}
