"""What following requests costs: answers from the cache, whole stack over HTTP, with and without traces.

    python -m benchmarks.tracing [--requests 3000]

CPU time of the web processes for one answer, beside the answers a second that the clients saw: other work on the machine moves the latter alone.
"""

import argparse
import threading
import time

import httpx

from benchmarks._portal import portal_with_model
from tests.stack import Stack

CLIENTS = 8
KINDS = {"no traces": "0", "as set: 50 a second and process": "50", "every request": "1000000"}


def ask_from_cache(portal: Stack, version: str, requests: int) -> tuple[float, float]:
    """CPU milliseconds of the web processes an answer, and answers a second."""
    question = {"prompt": "What is entry 0?", "max_tokens": 32, "temperature": 0, "version": version}

    def client() -> None:
        with httpx.Client(base_url=portal.url, headers={"Authorization": f"Bearer {portal.token}"}, timeout=60) as http:
            for _ in range(requests // CLIENTS):
                assert http.post("/api/v1/generate/", json=question).json()["cached"]

    def cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in portal.processes("web"))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    before, began = cpu(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    time.sleep(1)  # what was put aside for later is told by then
    asked = requests // CLIENTS * CLIENTS
    return (cpu() - before) * 1000 / asked, asked / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    given = parser.parse_args()
    print("| | CPU ms of web an answer | answers/s |\n|---|---|---|")
    for name, rate in KINDS.items():
        with portal_with_model(DSPORTAL_TRACES_PER_SECOND=rate) as (portal, version):
            ask_from_cache(portal, version, given.requests // 5)  # to warm up
            milliseconds, answers = ask_from_cache(portal, version, given.requests)
        print(f"| {name} | {milliseconds:.2f} | {answers:,.0f} |", flush=True)
    print("\nAnswers from the cache, with authentication, counters and the answer's row; Python clients on the same cores.")


if __name__ == "__main__":
    main()
