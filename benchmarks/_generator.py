"""Locust as the load generator of `benchmarks.load`: what is to be asked, and what came of it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tests.stack import Stack, knowledge

LOCUSTFILE = Path(__file__).with_name("_locustfile.py")
ROOT = LOCUSTFILE.parent.parent


class Asked(NamedTuple):
    """One request, in seconds since 1970."""

    due: float  # when it was to be sent
    sent: float
    ended: float
    status: int  # 0: no answer came
    cached: bool
    retry_after: int | None  # seconds
    version: str | None
    latency_ms: float | None  # as the answer itself says
    error: str  # what a failed one said

    @property
    def ms(self) -> float:
        """As the asker waited, from when the question was due."""
        return (self.ended - self.due) * 1000

    @property
    def is_answered(self) -> bool:
        return self.status == 200

    @property
    def is_failed(self) -> bool:
        """Neither answered nor told to come back later."""
        return self.status not in (200, 429)


@dataclass
class Plan:
    url: str
    token: str
    stages: Sequence[tuple[float, float]]  # questions a second, seconds
    distinct: int = 0  # questions, asked by Zipf's law with s = 1; 0: none is asked twice
    first: int = 0  # the questions' numbers count from here
    failing: float = 0.0  # share of questions that `failing_version` is asked, which answers none
    failing_version: str | None = None
    until_full: bool = False  # stop after a stage whose questions were not all answered in time
    max_tokens: int = 32
    version: str | None = None  # the live one where none is given
    seed: int = 0
    subjects: Sequence[str] = ()
    results: str = ""


class Load:
    """Questions to one portal."""

    def __init__(self, portal: Stack):
        self._portal = portal
        self._subjects = [row["title"] for row in knowledge() if row.get("title")]

    def press(self, stages: Sequence[tuple[float, float]], **how) -> list[Asked]:
        """All requests, by the moment they were due. Returns when the last is answered."""
        with self.pressing(stages, **how) as asked:
            pass
        return asked()

    @contextmanager
    def pressing(self, stages: Sequence[tuple[float, float]], **how):
        """While something else is done. What is given out tells what came of it, afterwards."""
        with tempfile.TemporaryDirectory() as temporary:
            plan, results = Path(temporary) / "plan.json", Path(temporary) / "results.jsonl"
            given = Plan(self._portal.url, self._portal.token, stages, subjects=self._subjects, results=str(results), **how)
            plan.write_text(json.dumps(asdict(given)))
            command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "-u", "1", "--host", given.url, "--only-summary"]
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "LOAD_PLAN": str(plan)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            rows: list[Asked] = []
            try:
                yield lambda: rows
                told = process.communicate()[1]
            finally:
                process.kill()
                process.wait()
            if not results.exists():
                raise SystemExit(f"Locust did not run:\n{told[-2000:]}")
            rows += sorted(Asked(*json.loads(line)) for line in results.read_text().splitlines())


def percentile_ms(asked: Iterable[Asked], share: float, of: Callable[[Asked], float] = lambda one: one.ms) -> float:
    """The latency in ms that `share` of those answered stayed within; not a number where there is none."""
    found = sorted(of(one) for one in asked if one.is_answered)
    return found[max(0, -(-int(len(found) * share * 1000) // 1000) - 1)] if found else float("nan")
