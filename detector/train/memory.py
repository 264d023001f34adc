"""The process's memory: how much it uses, and how freed memory is kept between steps."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # from glibc's malloc.h
_LARGEST_INT = 2**31 - 1


def resident_mb() -> float:
    """Resident memory of this process in MB; its peak so far where the system reports only that."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    unit = 1 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


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
