"""Which processor this is, and how much of it this process may really use."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Usable processors by affinity, the cgroup's quota and OMP_NUM_THREADS; at least 1.

    A container with a quota of two processors on a machine of 64 sees 64; 64 threads would then slow each
    other down. OMP_NUM_THREADS is how torchrun, job systems and users limit what each process uses.

    Args:
        cgroup: root of the mounted hierarchy (version 2, or 1 with a folder `cpu`).
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [limit for limit in (_quota(cgroup), _openmp_threads()) if limit is not None]
    return max(1, min([count, *limits]))


def _quota(cgroup: Path) -> int | None:
    """Whole processors that the quota grants; None = no quota."""
    try:
        if (cgroup / "cpu.max").is_file():
            limit, period = (cgroup / "cpu.max").read_text().split()
        else:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        return None if limit == "max" or int(limit) <= 0 else int(limit) // int(period)
    except (OSError, ValueError):
        return None


def _openmp_threads() -> int | None:
    """What OMP_NUM_THREADS asks for (in a list, the outermost level); None = it is not set, or not a number."""
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(outermost) if outermost.isdecimal() and int(outermost) > 0 else None


def share_processors(stat: Path = Path("/proc/stat"), *, seconds: float = 0.3) -> str:
    """Lets threads sleep while they wait for each other, if other programs use the processors; returns a message.

    Waiting threads normally spin, which is fastest on a machine of one's own, and up to 40 times slower beside one busy
    program. To be called before torch is imported; a user's own OMP_WAIT_POLICY or GOMP_SPINCOUNT is respected.

    Args:
        stat: the kernel's counters.
        seconds: how long to measure.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() or "torch" in sys.modules or usable_cpus() == 1:
        return ""
    before = _idle_seconds(stat)
    time.sleep(seconds)
    after = _idle_seconds(stat)
    if before is None or after is None:
        return ""
    idle = (after - before) / seconds
    if idle > usable_cpus() - 0.5:
        return ""
    os.environ["OMP_WAIT_POLICY"] = "passive"
    return f"other programs are busy ({idle:.1f} of {usable_cpus()} processors are idle): waiting threads sleep"


def _idle_seconds(stat: Path) -> float | None:
    """How long the usable processors have been idle altogether; None = not known."""
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in mine)
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def computes_in_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has instructions for bfloat16 (x86: AVX-512 BF16 or AMX)."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("flags"):
                return bool({"avx512_bf16", "amx_bf16"} & set(line.split()))
    with suppress(ImportError):
        import torch

        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
