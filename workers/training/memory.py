"""The memory this process uses, as the system sees it."""

import os
import resource
import sys
from pathlib import Path

import torch


def used_bytes(device: torch.device) -> int:
    """Now: of the GPU's memory where there is one, else resident memory (its peak where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
