"""The memory of the machine that this process runs on: what there is, and what is free."""

import os
from pathlib import Path

USABLE_SHARE = 0.9  # the portal's own processes, and the system, need the rest


def machine_bytes() -> int:
    """Physical memory, or what the container may use of it where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(Path(path)) for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return min([physical, *(limit for limit in limits if limit)])


def free_bytes() -> int:
    """What a new process can take without anybody being moved out: of the machine, or of the container where that has less."""
    with Path("/proc/meminfo").open() as lines:
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = _limit(Path("/sys/fs/cgroup/memory.max")), _limit(Path("/sys/fs/cgroup/memory.current"))
    return min(machine, max(0, limit - used)) if limit and used else machine


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" where there is none
        return None
