"""The process's memory: how much it uses, and how freed memory is kept between steps."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # from glibc's malloc.h
_LARGEST_INT = 2**31 - 1
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def resident_mb() -> float:
    """Resident memory of this process in MB; its peak so far where the system reports only that."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    unit = 1 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def available_bytes(device: torch.device) -> int:
    """Free memory of a GPU; or of the machine, by Linux's own estimate, within the limit of the process's cgroup."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if _MEMINFO.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        limits += [1024 * int(found[1])] if found else []
    with suppress(OSError, ValueError):  # no cgroup, or "max"
        limits.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    return max(min(limits), 0)


def keep_freed_memory() -> bool:
    """Asks the C library to keep freed memory for the next step instead of giving it back to the system.

    Feature maps above 32 MB are otherwise mapped, zeroed and unmapped again at every step, which costs a fifth of a
    training step's time. The process stays as large as its largest step.

    Returns:
        Whether the C library supports the request (glibc does).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    requests = ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_MMAP_MAX, 0))
    granted = [mallopt(name, value) == 1 for name, value in requests]
    # Older versions refuse the first request, which matters little.
    return all(granted[1:])
