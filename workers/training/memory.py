"""The memory this process uses, as the system sees it."""

import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

# mallopt(3) of glibc: freed memory at the heap's end beyond this goes back to the system; larger pieces come from it, and go back, one by one.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 256 * 2**20
LARGEST_KEPT_PIECE = 32 * 2**20  # the most that glibc takes


def keep_freed_memory() -> bool:
    """Let malloc keep what a step frees for the next one. False where the C library has no such switch.

    Else a step of the smallest preset hands its activations back and gets them anew, page by page: 5,000 page faults and 11 of its
    130 ms. The peak stays what it was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, LARGEST_KEPT_PIECE) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


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
