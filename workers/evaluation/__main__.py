"""`python -m workers.evaluation SPEC.json`: one model on one held-out set."""

import hashlib
import time
from contextlib import closing
from typing import Any

import orjson

from workers.evaluation.evaluate import answer_rows, ask, figures
from workers.evaluation.questions import QUESTION, read_held_out, sample
from workers.evaluation.spec import EvaluateSpec
from workers.protocol import JobError, emit, run


def main(spec: EvaluateSpec) -> dict[str, Any]:
    from workers.engine import EngineError, open_engine  # a wrong spec should not have to wait for it

    try:
        content = spec.eval_file.read_bytes()
        held_out = read_held_out(spec.eval_file)
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"The held-out set {spec.eval_file.name} cannot be read ({error}). Process the dataset again.") from error
    rows = sample(held_out, spec.max_questions, spec.seed)
    if not any(row.kind == QUESTION for row in rows):
        raise JobError("The held-out set holds no question. Process a dataset with questions or knowledge entries first.")
    emit("progress", progress=0.0, message="Loading the model")
    try:
        with closing(open_engine(spec.model_folder, threads=spec.threads)) as engine:
            asked = ask(engine, rows, spec.max_tokens, time.monotonic, lambda done, seconds: _report(done, len(rows), seconds))
    except EngineError as error:
        raise JobError(str(error)) from error
    emit("progress", progress=0.96, message="Counting")
    result = figures(rows, asked, spec.seed) | {"eval_sha256": hashlib.sha256(content).hexdigest()}
    spec.output_folder.mkdir(parents=True, exist_ok=True)
    written = spec.output_folder / "answers.jsonl.tmp"
    written.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in answer_rows(rows, asked)))
    written.rename(spec.output_folder / "answers.jsonl")
    return result


def _report(done: int, total: int, seconds: float) -> None:
    emit("progress", progress=0.95 * done / total, message=f"{done} of {total} questions answered", eta_seconds=seconds / done * (total - done))


if __name__ == "__main__":
    run(main, EvaluateSpec)
