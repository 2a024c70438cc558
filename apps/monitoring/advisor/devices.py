"""Facts about hardware. From the makers' data sheets: dense figures, without sparsity; one device, one socket."""

import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from django.utils.translation import gettext_lazy, gettext_noop

GB = 1e9
PRICE_NOTE = gettext_lazy("typical on-demand, check yours")


@dataclass(frozen=True)
class Device:
    name: str
    kind: str  # gpu or cpu
    memory_bytes: float
    bandwidth: float  # bytes/s to its memory
    flops: dict[str, float]  # precision → operations/s at its peak; a precision that is missing is not offered
    price_per_hour: float | None  # USD for one, rented; see PRICE_NOTE
    note: str = ""
    source: str = ""  # where the figures stand; none for what was measured here

    def supports(self, precision: str) -> bool:
        return precision in self.flops


def _tera(**figures: float) -> dict[str, float]:
    return {name: value * 1e12 for name, value in figures.items()}


DEVICES = (
    Device(
        "H200 141 GB",
        "gpu",
        141 * GB,
        4.8e12,
        _tera(fp32=67, bf16=989, fp16=989, int8=1979),
        5.0,
        "SXM",
        "https://www.nvidia.com/en-us/data-center/h200/",
    ),
    Device(
        "H100 80 GB",
        "gpu",
        80 * GB,
        3.35e12,
        _tera(fp32=67, bf16=989, fp16=989, int8=1979),
        4.0,
        "SXM",
        "https://www.nvidia.com/en-us/data-center/h100/",
    ),
    Device(
        "A100 80 GB",
        "gpu",
        80 * GB,
        2.039e12,
        _tera(fp32=19.5, bf16=312, fp16=312, int8=624),
        2.5,
        "SXM",
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    Device(
        "A100 40 GB",
        "gpu",
        40 * GB,
        1.555e12,
        _tera(fp32=19.5, bf16=312, fp16=312, int8=624),
        2.0,
        "SXM",
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    Device(
        "L4 24 GB", "gpu", 24 * GB, 0.3e12, _tera(fp32=30.3, bf16=121, fp16=121, int8=242), 0.8, source="https://www.nvidia.com/en-us/data-center/l4/"
    ),
    Device(
        "T4 16 GB",
        "gpu",
        16 * GB,
        0.32e12,
        _tera(fp32=8.1, fp16=65, int8=130),
        0.5,
        gettext_noop("Take FP16 with loss scaling."),
        "https://www.nvidia.com/en-us/data-center/tesla-t4/",
    ),
    # 40 cores × 2.3 GHz × 64 FLOP a cycle (two AVX-512 units); INT8 by VNNI is four times that.
    Device(
        "Xeon Platinum 8380",
        "cpu",
        256 * GB,
        204.8e9,
        _tera(fp32=5.9, int8=23.6),
        2.0,
        gettext_noop("40 cores, 8 × DDR4-3200; 256 GB assumed"),
        "https://www.intel.com/content/www/us/en/products/sku/212287/intel-xeon-platinum-8380-processor-60m-cache-2-30-ghz/specifications.html",
    ),
    # 96 cores × 2.4 GHz × 32 FLOP a cycle; BF16 doubles it, VNNI gives four times.
    Device(
        "EPYC 9654",
        "cpu",
        384 * GB,
        460.8e9,
        _tera(fp32=7.4, bf16=14.7, int8=29.5),
        4.0,
        gettext_noop("96 cores, 12 × DDR5-4800; 384 GB assumed"),
        "https://www.amd.com/en/products/processors/server/epyc/4th-generation-9004-and-8004-series/amd-epyc-9654.html",
    ),
)

_BLOCK_BYTES = 32 * 1024**2  # larger than the caches' share of one core


def facts_of(device: Device, precision: str) -> str:
    """Peak in the precision, bandwidth and price, in one line."""
    facts = [f"{device.bandwidth / 1e9:,.0f} GB/s"]
    if device.supports(precision):
        facts.insert(0, f"{device.flops[precision] / 1e12:,.3g} T{'OP' if precision == 'int8' else 'FLOP'}/s {precision.upper()}")
    if device.price_per_hour is not None:
        facts.append(f"${device.price_per_hour:,.2f}/h")
    return " · ".join(facts)


@lru_cache(maxsize=1)
def this_machine() -> Device:
    """The machine that the portal runs on: cores, clock and features from /proc, the bandwidth measured once."""
    info = _read("/proc/cpuinfo")
    cores = os.cpu_count() or 1
    name = _first(r"model name\s*:\s*(.+)", info) or "this machine"
    hertz = float(_first(r"cpu MHz\s*:\s*([\d.]+)", info) or 2000.0) * 1e6
    flags = set((_first(r"flags\s*:\s*(.+)", info) or "").split())
    # A fused multiply-add on two units: 16 single floats wide with AVX-512 (AMD's older ones split it), 8 with AVX2, else 4 on SSE.
    per_cycle = (64 if "GenuineIntel" in info else 32) if "avx512f" in flags else 32 if "avx2" in flags else 8
    fp32 = cores * hertz * per_cycle
    flops = {"fp32": fp32, "int8": fp32 * (4 if flags & {"avx512_vnni", "avx_vnni"} else 2)}
    if "avx512_bf16" in flags:
        flops["bf16"] = 2 * fp32
    memory = float(_first(r"MemTotal:\s*(\d+)", _read("/proc/meminfo")) or 0) * 1024
    # A core cannot draw all of a socket's bandwidth; up to four are taken to add up.
    note = f"{cores} cores at {hertz / 1e9:.1f} GHz; bandwidth measured, peak derived from the clock"
    return Device(f"this machine ({name.strip()})", "cpu", memory, _copy_bandwidth() * min(cores, 4), flops, None, note)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _copy_bandwidth() -> float:
    """Bytes/s of one core, reading and writing; the best of three, about 30 ms."""
    source, target = bytearray(_BLOCK_BYTES), bytearray(_BLOCK_BYTES)
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        target[:] = source
        best = max(best, 2 * _BLOCK_BYTES / (time.perf_counter() - began))
    return best
