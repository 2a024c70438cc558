"""`make bench`: run every benchmark of this folder and write their tables to docs/benchmarks.md.

python -m benchmarks [NAME …]      only the named ones; the others' tables stay as they were

BENCH_QUICK=1 shortens those that take minutes, to show that they run; figures so won are not written down.
"""

import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Each table is printed by `python -m benchmarks.NAME` and written here by `make bench`; none is typed in. Peers run beside us in the same run: trust
ratios rather than absolute figures, since other work on the machine moves the latter.
"""


def names() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("[a-z]*.py"))


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    return f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def sections() -> dict[str, str]:
    """Name → section, of the page as it is."""
    if not PAGE.exists():
        return {}
    parts = re.split(r"^## (\w+)\n", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def measure(name: str) -> str | None:
    print(f"{name} …", flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    print(done.stdout)
    day = datetime.now(UTC).date()
    return f"\n{done.stdout.strip()}\n\n<sub>`python -m benchmarks.{name}`, {time.monotonic() - began:.0f} s on {day}: {machine()}</sub>\n\n"


def main() -> int:
    asked = sys.argv[1:] or names()
    if unknown := set(asked) - set(names()):
        print(f"There is no benchmark {sorted(unknown)[0]}; there are {', '.join(names())}.", file=sys.stderr)
        return 2
    written = sections()
    failed = []
    for name in asked:
        table = measure(name)
        if table is None:
            failed.append(name)
            continue
        if os.environ.get("BENCH_QUICK"):
            continue
        written[name] = table
        PAGE.write_text(HEAD + "\n" + "".join(f"## {n}\n{written[n]}" for n in sorted(written)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
