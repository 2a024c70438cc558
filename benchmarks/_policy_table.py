"""The demonstration's model distilled, as ONNX, and through the policy: issue by issue the claim, its target and what was measured."""

import os
import tempfile
import time
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks._demonstration import QUICK_STEPS, STEPS, trained
from workers.compression.distill import run_distill
from workers.compression.measure import speeds, weight_bytes
from workers.compression.onnx_export import run_onnx
from workers.compression.policy import run_policy
from workers.compression.spec import CompressSpec
from workers.engine import open_engine
from workers.evaluation.evaluate import ask, figures
from workers.evaluation.questions import QUESTION, HeldOut, read_held_out, sample
from workers.moe import count_parameters, read_config

CONCURRENCY = (1, 8, 32)
ROUNDS = 3
TOKENS = 64
STUDENT_MINUTES = 2.5
POLICY = "policy's choice"

Questions = list[list[dict[str, str]]]


def quietly(work: Any, *given: Any) -> Any:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return work(*given)


def answers_of(folder: Path, questions: Questions) -> list[str]:
    with closing(open_engine(folder, threads=1)) as engine:
        return [completion.text for completion in engine.generate_all(questions, max_tokens=TOKENS)]


def speeds_of(folders: dict[str, Path], questions: Questions) -> dict[str, list[float]]:
    """Tokens a second of whole answers, the reading of their prompts included, as long as each model makes them: in processor time, at each
    concurrency, each model's best of some rounds, in turns; on one core."""
    engines = {name: open_engine(folder, threads=1) for name, folder in folders.items()}
    best = {name: [0.0] * len(CONCURRENCY) for name in folders}
    for place, together in enumerate(CONCURRENCY):
        asked = questions[: max(32, together)]
        for _ in range(ROUNDS):
            for name, engine in engines.items():
                began, tokens = time.process_time(), 0
                for start in range(0, len(asked), together):
                    tokens += sum(c.tokens + 1 for c in engine.generate_all(asked[start : start + together], max_tokens=TOKENS))
                best[name][place] = max(best[name][place], tokens / (time.process_time() - began))
    for engine in engines.values():
        engine.close()
    return best


def judged(folder: Path, rows: list[HeldOut]) -> dict[str, Any]:
    """BLEU of the questions, and the shares of false and of true claims that are refused."""
    with closing(open_engine(folder, threads=1)) as engine:
        return figures(rows, ask(engine, rows, TOKENS, time.monotonic, lambda done, seconds: None), 0)


def print_table(quick: bool, threads: int, model: Path | None = None, data: Path | None = None) -> None:
    if model is None or data is None:
        model, data = trained(QUICK_STEPS if quick else STEPS, threads)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _print(quick, threads, model, data, work)


def _print(quick: bool, threads: int, model: Path, data: Path, work: Path) -> None:
    def spec(method: Any, **options: Any) -> CompressSpec:
        made.append(method)
        output, own = work / f"{method}{len(made)}", work / f"w{len(made)}"
        return CompressSpec(
            method=method, threads=threads, model_folder=model, dataset_folder=data, output_folder=output, work_folder=own, **options
        )  # fmt: skip

    made: list[str] = []
    rows = sample(read_held_out(data / "eval.jsonl"), 60 if quick else None, 0)
    questions = [[{"role": "user", "content": row.question}] for row in rows if row.kind == QUESTION]

    student = spec("distill", **({"steps": 20} if quick else {"minutes": STUDENT_MINUTES}))
    learnt = quietly(run_distill, student)["details"]
    graphs = {weights: spec("onnx", weights=weights) for weights in ("fp32", "int8")}
    for graph in graphs.values():
        quietly(run_onnx, graph)
    asked = spec("policy", min_speed_ratio=2.0, max_bytes=int(0.26 * weight_bytes(model)), **({"steps": 20} if quick else {}))
    asked.work_folder.mkdir()
    began = time.monotonic()
    chosen = quietly(run_policy, asked)
    seconds = time.monotonic() - began

    folders = {"teacher": model, "student": student.output_folder, POLICY: asked.output_folder}
    others = {"ONNX": graphs["fp32"].output_folder, "ONNX INT8": graphs["int8"].output_folder}
    names = list(folders | others)
    decoding = dict(
        zip(names, (list(speed.tokens_per_second.values()) for speed in speeds(list((folders | others).values()), questions[:32])), strict=True)
    )
    answering = speeds_of(folders | others, questions)
    quality = {name: judged(folder, rows) for name, folder in folders.items()}

    def times(name: str, rates: dict[str, list[float]]) -> str:
        return " / ".join(f"{own / base:.2f}×" for own, base in zip(rates[name], rates["teacher"], strict=True))

    print(
        f"\n**The demonstration's model**, {len(rows)} held-out questions and claims; speeds at 1 / 8 / 32 answers at a time, next to the teacher's:\n"
        "of decoding as many tokens after the same prompts, and of whole answers, the reading of their prompts included\n"
    )
    print(
        "| | BLEU | of the teacher's | parameters | MB | decoding | answering | falsehoods refused | false alarms |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, folder in folders.items():
        found = quality[name]
        share = found["bleu"] / max(quality["teacher"]["bleu"], 1e-9)
        print(
            f"| {name} | {found['bleu']:.1f} | {share:.1%} | {count_parameters(read_config(folder))[0]:,} | {weight_bytes(folder) / 1e6:.2f} "
            f"| {times(name, decoding)} | {times(name, answering)} "
            f"| {_percent(found['refusal_rate'])} | {_percent(found['false_alarm_rate'])} |"
        )
    print(f"\nThe student has {1 - learnt['parameter_ratio']:.1%} fewer parameters and learnt in {learnt['seconds']:.0f} s, {learnt['steps']:,} steps. Its loss, "
          "step by step: " + ", ".join(f"{step}: {loss:.2f}" for step, _, loss in learnt["curve"][:: 1 if quick else 6]))  # fmt: skip

    final = next(row for row in chosen["details"]["trail"] if row["decision"] == "chosen")
    print("\n| the policy, unattended | target | measured |\n|---|---|---|")
    print(f"| seconds | ≤ 300 | {seconds:.0f} |")
    print(f"| chosen | – | {final['step']} |")
    print(f"| smaller | ≥ 74 % | {1 - final['figures']['size_ratio']:.1%} |")
    print(f"| faster | ≥ 2× | {times(POLICY, decoding)} |")
    print(f"| BLEU lost | ≤ 1 | {quality['teacher']['bleu'] - quality[POLICY]['bleu']:.1f} |")
    print("\n| it tried | decision | BLEU | MB | speed | P99 | why |\n|---|---|---|---|---|---|---|")
    for row in chosen["details"]["trail"]:
        f = row["figures"]
        ratios = " / ".join(f"{ratio:.2f}×" for ratio in f["speed_ratios"].values()) if f else ""
        told = f"{f['bleu']:.1f} | {f['bytes'] / 1e6:.2f} | {ratios} | {f['p99_ms']:.1f} ms" if f else "| | |"
        print(f"| {row['step']} | {row['decision']} | {told} | {row['reason']} |")

    answers = {name: answers_of(folder, questions) for name, folder in {"teacher": model, **others}.items()}
    print("\n| as a graph for onnxruntime | tokens/s of decoding | next to ours | greedy answers equal to the parent's |\n|---|---|---|---|")
    for name in others:
        rates = " / ".join(f"{rate:,.0f}" for rate in decoding[name])
        equal = sum(a == b for a, b in zip(answers[name], answers["teacher"], strict=True))
        print(f"| {name} | {rates} | {times(name, decoding)} | {equal} of {len(questions)} |")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
