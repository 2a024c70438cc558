"""The demonstration's model distilled, as ONNX, and through the policy: issue by issue the claim, its target and what was measured."""

import os
import tempfile
import time
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks._demonstration import QUICK_STEPS, STEPS, trained
from workers.compression.distill import run_distill
from workers.compression.measure import weight_bytes
from workers.compression.onnx_export import run_onnx
from workers.compression.policy import run_policy
from workers.compression.quality import evaluate, held_out
from workers.compression.spec import CompressSpec
from workers.engine import open_engine

CONCURRENCY = (1, 8, 32)
ROUNDS = 3
TOKENS = 64

Questions = list[list[dict[str, str]]]


def quietly(work: Any, *given: Any) -> Any:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return work(*given)


def answers_of(folder: Path, questions: Questions) -> list[str]:
    with closing(open_engine(folder, threads=1)) as engine:
        return [completion.text for completion in engine.generate_all(questions, max_tokens=TOKENS)]


def speeds_of(folders: dict[str, Path], questions: Questions) -> dict[str, list[float]]:
    """Tokens a second of processor time at each concurrency, each model's best of some rounds, in turns; on one core."""
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


def print_table(quick: bool, threads: int, model: Path | None = None, data: Path | None = None) -> None:
    if model is None or data is None:
        model, data = trained(QUICK_STEPS if quick else STEPS, threads)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _print(quick, threads, model, data, work)


def _print(quick: bool, threads: int, model: Path, data: Path, work: Path) -> None:
    def spec(method: str, **options: Any) -> CompressSpec:
        folders = {
            "model_folder": model,
            "dataset_folder": data,
            "output_folder": work / f"{method}{len(made)}",
            "work_folder": work / f"w{len(made)}",
        }
        made.append(method)
        return CompressSpec(method=method, threads=threads, max_questions=60 if quick else 658, **(folders | options))

    made: list[str] = []
    length: dict[str, Any] = {"steps": 20} if quick else {"minutes": 4.0}
    judge = spec("int8")
    rows = held_out(judge)
    questions = [[{"role": "user", "content": row.question}] for row in rows]
    parent = quietly(evaluate, model, rows, judge)

    student = spec("distill", **length)
    result = quietly(run_distill, student)
    taught = quietly(evaluate, student.output_folder, rows, judge)
    graphs = {weights: spec("onnx", weights=weights) for weights in ("fp32", "int8")}
    for graph in graphs.values():
        quietly(run_onnx, graph)
    asked = spec("policy", min_speed_ratio=2.0, max_bytes=int(0.26 * weight_bytes(model)), **({"steps": 20} if quick else {}))
    asked.work_folder.mkdir()
    began = time.monotonic()
    chosen = quietly(run_policy, asked)
    seconds = time.monotonic() - began

    folders = {
        "parent": model, "student": student.output_folder, "ONNX": graphs["fp32"].output_folder, "ONNX INT8": graphs["int8"].output_folder,
        "chosen": asked.output_folder,
    }  # fmt: skip
    speeds = speeds_of(folders, questions)
    told = {name: answers_of(folder, questions) for name, folder in folders.items()}

    def times(name: str) -> str:
        return " / ".join(f"{own / base:.2f}×" for own, base in zip(speeds[name], speeds["parent"], strict=True))

    def equal(name: str) -> str:
        return f"{sum(a == b for a, b in zip(told[name], told['parent'], strict=True))} of {len(questions)}"

    final = next(row for row in chosen["details"]["trail"] if row["decision"] == "chosen")
    figures = final["figures"]
    print(f"\n**The demonstration's model**, BLEU {parent['bleu']:.1f} on {len(rows)} held-out questions; speed at 1 / 8 / 32 answers at a time\n")
    print("| claim | target | measured |\n|---|---|---|")
    print(f"| student's BLEU | ≥ 90 % | {taught['bleu'] / max(parent['bleu'], 1e-9):.1%} ({taught['bleu']:.1f}) |")
    print(f"| student's parameters | ≥ 80 % fewer | {1 - result['details']['parameter_ratio']:.1%} fewer |")
    print(f"| student's decoding | ≥ 3× | {times('student')} |")
    print(f"| student's learning | 5 minutes | {result['details']['steps']:,} steps in {result['details']['seconds']:.0f} s |")
    for name in ("ONNX", "ONNX INT8"):
        print(f"| {name}: greedy answers equal to its parent's | {'all' if name == 'ONNX' else '–'} | {equal(name)} |")
        rates = " / ".join(f"{rate:,.0f}" for rate in speeds[name])
        print(f"| {name}: tokens/s beside ours | – | {rates}, {times(name)} |")
    print(f"| policy: seconds, unattended | ≤ 300 | {seconds:.0f} |")
    print(f"| policy: chosen | – | {final['step']} |")
    print(f"| policy: smaller | ≥ 74 % | {1 - figures['size_ratio']:.1%} |")
    print(f"| policy: faster | ≥ 2× | {times('chosen')} |")
    print(f"| policy: BLEU lost | ≤ 1 | {parent['bleu'] - figures['bleu']:.1f} |")
    print(
        "\nThe student's loss, step by step: "
        + ", ".join(f"{step}: {loss:.2f}" for step, _, loss in result["details"]["curve"][:: 1 if quick else 6])
    )
    print("\n| the policy tried | decision | BLEU | bytes | speed | P99 |\n|---|---|---|---|---|---|")
    for row in chosen["details"]["trail"]:
        if not (f := row["figures"]):
            print(f"| {row['step']} | {row['decision']} | | | | |")
            continue
        print(f"| {row['step']} | {row['decision']} | {f['bleu']:.1f} | {f['bytes'] / 1e6:.2f} MB | {f['speed_ratio']:.2f}× | {f['p99_ms']:.1f} ms |")
