"""`python -m workers.batch SPEC.json`: answer the prompts that are not answered yet, then write all answers in their order."""

import json
import time
from contextlib import closing
from typing import Any

from workers.batch.journal import Journal
from workers.batch.prompts import read_prompts
from workers.batch.spec import BatchSpec
from workers.protocol import JobError, emit, run

JOURNAL_FILE, ANSWERS_FILE = "journal.jsonl", "answers.jsonl"
REPORT_SECONDS = 0.5


def main(spec: BatchSpec) -> dict[str, Any]:
    from workers.batch.answering import answer_all  # a wrong spec should not have to wait for the engine
    from workers.engine import EngineError, open_engine

    total = sum(1 for _ in read_prompts(spec.inputs))
    if not total:
        raise JobError("There is no prompt in these files. Send JSONL, one JSON object a line, with a prompt, a question or messages.")
    spec.work_folder.mkdir(parents=True, exist_ok=True)
    with Journal(spec.work_folder / JOURNAL_FILE) as journal:
        before, began, last = len(journal.done), time.monotonic(), 0.0
        emit("progress", progress=0.99 * before / total, message="Loading the model" if before < total else "Writing the answers")
        left = (prompt for prompt in read_prompts(spec.inputs, spec.system) if prompt.row not in journal.done)
        try:
            if before < total:
                with closing(open_engine(spec.model_folder, threads=spec.threads, cache_bytes=spec.cache_bytes)) as engine:
                    answers = answer_all(engine, left, max_tokens=spec.max_tokens, temperature=spec.temperature, seed=spec.seed)
                    for entry in answers:
                        journal.write(entry)
                        now, done = time.monotonic(), len(journal.done)
                        if now - last > REPORT_SECONDS or done == total:
                            last = now
                            seconds = (now - began) / (done - before) * (total - done)
                            emit("progress", progress=0.99 * done / total, message=f"{done} of {total} prompts answered", eta_seconds=seconds)
        except EngineError as error:
            raise JobError(f"{error} {len(journal.done)} of {total} prompts are answered and kept: resume the job to go on.") from error
    return _write(spec, journal) | {"seconds": time.monotonic() - began, "resumed_from": before}


def _write(spec: BatchSpec, journal: Journal) -> dict[str, Any]:
    figures = {"rows": 0, "answered": 0, "refused": 0, "prompt_tokens": 0, "completion_tokens": 0}
    spec.output_folder.mkdir(parents=True, exist_ok=True)
    written = spec.output_folder / f"{ANSWERS_FILE}.tmp"
    with written.open("wb") as file:
        for line in journal.in_order():
            entry = json.loads(line)
            figures["rows"] += 1
            figures["refused" if "error" in entry else "answered"] += 1
            for name, count in entry.get("usage", {}).items():
                figures[name] += count
            file.write(line)
    written.rename(spec.output_folder / ANSWERS_FILE)
    return figures


if __name__ == "__main__":
    run(main, BatchSpec)
