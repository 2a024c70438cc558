"""S14: tokens a second through the whole stack over HTTP, beside the engine alone; and how long the first token takes, in one run.

    python -m benchmarks.whole_stack [--seconds 8] [--tokens 64] [--quick]

32 requests at once, none from the cache: every question is another. The portal is a real one (a token is checked, quotas, metrics, traces and the
answers' log are on), with one inference worker of one thread; the engine alone has the same thread, model, questions and concurrency. They take
turns, and each counts by its best: other work on the machine only slows one down. Web, Redis, worker and the load generator (`wrk`) share the
machine's cores, the engine alone has one to itself.

The time to the first token is that of eight clients that read their answers as streams, from sending the question to the first piece of text.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx
import numpy as np

from benchmarks._portal import portal_with_model
from tests.stack import Stack
from workers.engine import Engine, SamplingParams, open_engine

TOGETHER, STREAMS, ROUNDS = 32, 8, 3
MANY = str(10**9)  # a quota that is counted and not reached
QUESTION = "What is entry {}, and why is it not the entry after it?"
SCRIPT = """
local n = {first}
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {token}"
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil, '{{"prompt": "What is entry ' .. n .. ', and why is it not the entry after it?", "max_tokens": {tokens}, "version": "{version}"}}')
end
done = function(summary, latency)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("MEASURED %d %d %d\\n", summary.requests, failed, summary.duration))
end
"""
ROLES = ("web", "inference", "redis", "beat")

numbers = count(1, 100_000)  # each round asks others


def alone(engine: Engine, seconds: float, tokens: int) -> float:
    """Tokens/s with 32 questions in the engine at any time: whoever has an answer asks the next."""
    ends, asked = time.perf_counter() + seconds, count(next(numbers))

    def client(_: int) -> int:
        answers = 0
        while time.perf_counter() < ends:
            engine.submit([{"role": "user", "content": QUESTION.format(next(asked))}], SamplingParams(tokens)).result()
            answers += 1
        return answers

    began = time.perf_counter()
    with ThreadPoolExecutor(TOGETHER) as clients:
        return sum(clients.map(client, range(TOGETHER))) * tokens / (time.perf_counter() - began)


def over_http(portal: Stack, version: str, seconds: float, tokens: int) -> tuple[float, dict[str, float]]:
    """Tokens/s, and milliseconds of processor time an answer, by process."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(first=next(numbers), token=portal.token, tokens=tokens, version=version))
        script.flush()
        before = cpu_seconds(portal)
        done = subprocess.run(
            ["wrk", "-t1", f"-c{TOGETHER}", f"-d{seconds}s", "--timeout", "30s", "-s", script.name, f"{portal.url}/api/v1/generate/"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = {role: after - before[role] for role, after in cpu_seconds(portal).items()}
    found = re.search(r"MEASURED (\d+) (\d+) (\d+)", done.stdout)
    assert found, done.stdout
    answers, failed, microseconds = map(int, found.groups())
    if failed:
        sys.exit(f"{failed} of {answers} requests failed:\n{portal.tail()}")
    return answers * tokens / (microseconds / 1e6), {role: 1000 * cost / answers for role, cost in used.items()}


def cpu_seconds(portal: Stack) -> dict[str, float]:
    return {role: sum(sum(process.cpu_times()[:2]) for process in portal.processes(role)) for role in ROLES}


async def first_tokens(portal: Stack, version: str, seconds: float, tokens: int) -> list[float]:
    """Milliseconds until the first text, of eight clients that read streams."""
    ends, asked, found = time.perf_counter() + seconds, count(next(numbers)), []
    headers = {"Authorization": f"Bearer {portal.token}"}

    async def client(http: httpx.AsyncClient) -> None:
        while time.perf_counter() < ends:
            body = {"model": version, "messages": [{"role": "user", "content": QUESTION.format(next(asked))}], "max_tokens": tokens, "stream": True}
            began, is_first = time.perf_counter(), True
            async with http.stream("POST", f"{portal.url}/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if is_first and line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                        found.append((time.perf_counter() - began) * 1000)
                        is_first = False

    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        await asyncio.gather(*(client(http) for _ in range(STREAMS)))
    return found


def rows(preset: str, seconds: float, tokens: int, rounds: int) -> tuple[str, str]:
    """One of each table."""
    quiet = {"DSPORTAL_INFERENCE_THREADS": "1", "DSPORTAL_MAX_REPLICAS": "1"}
    quotas = {"DSPORTAL_REQUESTS_PER_MINUTE": MANY, "DSPORTAL_TOKENS_PER_MINUTE": MANY}
    engine_rate, http_rate, cost, waited = 0.0, 0.0, {}, []
    with portal_with_model(preset, **quiet, **quotas) as (portal, version):
        engine = open_engine(portal.home / "imports" / "model", threads=1)
        over_http(portal, version, 1, tokens)
        for _ in range(rounds):
            engine_rate = max(engine_rate, alone(engine, seconds, tokens))
            rate, used = over_http(portal, version, seconds, tokens)
            if rate > http_rate:
                http_rate, cost = rate, used
            waited += asyncio.run(first_tokens(portal, version, seconds, tokens))
        engine.close()
    p50, p99 = np.percentile(waited, [50, 99])
    costs = " | ".join(f"{cost[role]:.1f}" for role in ROLES)
    return (
        f"| `{preset}` | {engine_rate:,.0f} | {http_rate:,.0f} | {http_rate / engine_rate:.2f} | {costs} |",
        f"| `{preset}` | {len(waited):,} | {p50:.0f} | {p99:.0f} | {p99 / p50:.1f} |",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=8, help="of each of three rounds")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--presets", nargs="*", default=["small", "nano"])
    parser.add_argument("--quick", action="store_true", help="one short round of one model")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed (Debian: apt-get install wrk).")
    quick = given.quick or bool(os.environ.get("BENCH_QUICK"))
    seconds, rounds = (2, 1) if quick else (given.seconds, ROUNDS)
    found = [rows(preset, seconds, given.tokens, rounds) for preset in (given.presets[:1] if quick else given.presets)]
    print(f"Answers of {given.tokens} tokens, one thread for the model, {os.cpu_count()} cores.\n")
    heads = "| tokens/s, 32 at once | engine alone | over HTTP | ratio | " + " | ".join(f"CPU ms an answer: {role}" for role in ROLES) + " |"
    print("\n".join([heads, "|---" * (4 + len(ROLES)) + "|", *(row for row, _ in found)]))
    print("\n| first token, 8 streams at once | answers | P50 ms | P99 ms | P99 / P50 |\n|---|---|---|---|---|")
    print("\n".join(row for _, row in found))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
