"""Records which image is being read, so that an error about a hanging loader can name the file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import get_worker_info


class ReadingNotes:
    """Which image each loader process is reading, in memory that the processes share.

    Args:
        paths: of all images.
        num_workers: number of loader processes.
    """

    def __init__(self, paths: Sequence[Path], num_workers: int) -> None:
        self._paths = paths
        self._rows = torch.zeros(max(num_workers, 1), 2, dtype=torch.float64)  # index of the image + 1, start time
        self._rows.share_memory_()  # type: ignore[no-untyped-call]

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Records an image while it is read, in any process."""
        worker = get_worker_info()
        row = self._rows[worker.id if worker is not None else 0]
        row[0], row[1] = index + 1, time.time()
        try:
            yield
        finally:
            row[0] = 0

    def describe(self) -> str:
        """What every worker is reading, in one line."""
        lines = [
            f"worker {worker} has been reading {self._paths[int(number) - 1]} for {time.time() - since:.0f} s"
            for worker, (number, since) in enumerate(self._rows.tolist())
            if number
        ]
        return "; ".join(lines) or "no worker is reading an image"
