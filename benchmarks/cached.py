"""S15: cached answers a second through the whole stack, asked by `wrk`: a token is checked, its quota is counted, every answer is counted in the
metrics and written to the log.

    python -m benchmarks.cached [--seconds 20] [--connections 64] [--questions 200]

The load generator, Redis, beat and the web processes share the machine's cores. The last column says what an answer costs the web processes:
other work on the machine does not change it much.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._stack import Portal, portal

MANY = 1_000_000_000  # a quota that is counted and not reached
SCRIPT = """
local questions, n = {questions}, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {token}"
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil, '{{"prompt": "What is entry ' .. (n % questions) .. '?", "max_tokens": 16}}')
end
done = function(summary, latency)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("MEASURED %d %d %.1f %.1f\\n", summary.requests, failed, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


def press(running: Portal, *, seconds: int, connections: int, questions: int) -> str:
    """One row of the table."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(token=running.token, questions=questions))
        script.flush()
        before, began = running.cpu_seconds(), time.monotonic()
        done = subprocess.run(
            ["wrk", "-t2", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script.name, f"{running.url}/api/v1/generate/"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        took, after = time.monotonic() - began, running.cpu_seconds()
    found = re.search(r"MEASURED (\d+) (\d+) ([\d.]+) ([\d.]+)", done.stdout)
    assert found, done.stdout
    answers, failed, p50, p99 = int(found[1]), int(found[2]), float(found[3]), float(found[4])
    cost = {name: 1000 * (after[name] - before.get(name, 0.0)) / max(answers, 1) for name in after}
    web = f"{cost.get('granian', 0):.2f} ms ({cost.get('redis', 0):.2f} ms Redis, {cost.get('beat@', 0):.2f} ms beat)"
    return f"| {connections} | {answers / took:,.0f} | {p50:.0f} ms | {p99:.0f} ms | {failed} | {web} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=2 if os.environ.get("BENCH_QUICK") else 20)
    parser.add_argument("--connections", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--questions", type=int, default=200)
    given = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed (Debian: apt-get install wrk).")
    with portal(DSPORTAL_REQUESTS_PER_MINUTE=str(MANY), DSPORTAL_TOKENS_PER_MINUTE=str(MANY)) as running:
        for number in range(given.questions):
            running.ask(f"What is entry {number}?", max_tokens=16)
        rows = [press(running, seconds=given.seconds, connections=n, questions=given.questions) for n in given.connections]
    print("| connections | cached answers/s | P50 | P99 | failed | CPU an answer, web |\n|---|---|---|---|---|---|")
    print("\n".join(rows))
    load = os.getloadavg()[0]
    print(
        f"\n{given.questions} questions, asked by `wrk`; {os.cpu_count()} cores, shared with it (load {load:.1f}). Authentication, quota, metrics, log: on."
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
