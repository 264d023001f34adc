"""How fast the steps of a session are, and how often they waited for the loader."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from detector.train.memory import resident_mb

_Batch = TypeVar("_Batch")
WAIT_SECONDS = 0.02
"""Fetching a ready batch takes a few milliseconds; a batch that takes longer than this was not ready."""


class Throughput(Generic[_Batch]):
    """An iterator over batches that measures how much of the time inside `step` is spent waiting for them.

    Args:
        batches: to pass on.
        batch_size: images per step, over all ranks.
    """

    def __init__(self, batches: Generator[_Batch], batch_size: int) -> None:
        self._batches = batches
        self._batch_size = batch_size
        self._seconds = 0.0
        self._waited_seconds = 0.0
        self._num_steps = 0
        self._num_waits = 0

    def __iter__(self) -> Iterator[_Batch]:
        return self

    def __next__(self) -> _Batch:
        started = time.perf_counter()
        batch = next(self._batches)
        self._waited_seconds += time.perf_counter() - started
        return batch

    @contextmanager
    def step(self) -> Iterator[None]:
        """Wraps the computation of one step."""
        started, waited_seconds = time.perf_counter(), self._waited_seconds
        yield
        self._seconds += time.perf_counter() - started
        self._num_steps += 1
        self._num_waits += self._waited_seconds - waited_seconds > WAIT_SECONDS

    def close(self) -> None:
        """Closes the batches."""
        self._batches.close()

    def figures(self) -> dict[str, float]:
        """Images per second, the shares of steps and of time spent waiting, resident memory; empty before a step."""
        if not self._num_steps:
            return {}
        return {
            "images_per_second": self._num_steps * self._batch_size / self._seconds,
            "share_of_steps_that_waited": self._num_waits / self._num_steps,
            "share_of_time_waiting": self._waited_seconds / self._seconds,
            "resident_mb": resident_mb(),
        }
