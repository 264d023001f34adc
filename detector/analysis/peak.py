"""The peak rates of this machine: computing and copying."""

from __future__ import annotations

import time

import torch

SIDES = (1024, 2048, 4096)
LONG_SECONDS = 1.0


def matrix_product_gflops(dtype: torch.dtype, *, repeats: int = 3, device: str = "cpu") -> float:
    """Rate of one large product of square matrices with torch's threads or on a GPU, in 10^9 operations a second.

    The largest of `SIDES` whose product takes less than a second is measured: larger ones reach higher rates.
    """
    for side in SIDES:
        seconds = _product_seconds(side, dtype, repeats, device)
        if 8 * seconds > LONG_SECONDS:  # the next side has eight times the operations
            break
    return 2 * side**3 / seconds / 1e9


def _product_seconds(side: int, dtype: torch.dtype, repeats: int, device: str) -> float:
    """The shortest time of some products, after one to warm up."""
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    torch.mm(left, right)[0, 0].item()  # waits for a GPU
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(left, right)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def copy_gbytes(*, num_bytes: int = 2**28, repeats: int = 3) -> float:
    """Rate of copying a large tensor with torch's threads, in 10^9 bytes read and written a second."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * num_bytes / min(seconds) / 1e9
