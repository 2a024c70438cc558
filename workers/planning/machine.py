"""The memory of the machine that this process runs on."""

import os
from pathlib import Path

USABLE_SHARE = 0.9  # the portal's own processes, and the system, need the rest


def machine_bytes() -> int:
    """Physical memory, or what the container may use of it where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(Path(path)) for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return min([physical, *(limit for limit in limits if limit)])


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" where there is none
        return None
