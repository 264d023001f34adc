"""Batches for training, read and augmented by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from detector.config import DetectConfig, TrainConfig
from detector.data.batch import Batch
from detector.data.collate import collate
from detector.data.dataset import DetectionDataset
from detector.data.notes import ReadingNotes
from detector.data.sampler import StepSampler
from detector.data.samples import TrainingSamples
from detector.errors import InputError

_Batch = TypeVar("_Batch")


class Samples(Protocol):
    """The sample for any (step, slot). Attributes: notes: record of the image that is being read."""

    notes: ReadingNotes

    def __getitem__(self, key: tuple[int, int]) -> Any: ...


def training_batches(
    dataset: DetectionDataset, config: DetectConfig, *, start_step: int, rank: int = 0, num_ranks: int = 1
) -> Generator[Batch]:
    """Batches of a detection data set for training; see `ordered_batches`."""
    return ordered_batches(
        TrainingSamples(dataset, config, ReadingNotes(dataset.paths, config.train.num_workers)),
        collate,
        config.train,
        timeout_seconds=config.data.timeout_seconds,
        start_step=start_step,
        rank=rank,
        num_ranks=num_ranks,
    )


def ordered_batches(
    samples: Samples,
    collate_samples: Callable[[Sequence[Any]], _Batch],
    settings: TrainConfig,
    *,
    timeout_seconds: int,
    start_step: int,
    rank: int = 0,
    num_ranks: int = 1,
) -> Generator[_Batch]:
    """Batches (in `train.subdivisions` parts) from `start_step` on; the same ones for any num_workers.

    Args:
        samples: the sample for any (step, slot).
        collate_samples: makes a batch from the samples of one part.
        settings: number of steps, batch size, subdivisions and workers.
        timeout_seconds: see `DataConfig`; without workers there is no limit.
        start_step: the first optimiser step, counted from 0.
        rank: which share of every batch to read, when several processes train together.
        num_ranks: how many shares there are.

    Raises:
        InputError: an image cannot be read and data.bad_labels is `fail`, or no batch arrived in time.
    """
    sampler = StepSampler(
        start_step=start_step,
        end_step=settings.max_steps,
        batch_size=settings.batch_size,
        subdivisions=settings.subdivisions,
        rank=rank,
        num_ranks=num_ranks,
    )
    workers = settings.num_workers
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]  # the keys are (step, slot), torch's types expect int
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_samples,
        worker_init_fn=_init_worker,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        timeout=timeout_seconds if workers else 0,
    )
    batches: Any = None
    try:
        batches = iter(loader)
        for _ in range(len(sampler)):
            with _explain_errors(samples.notes, timeout_seconds):
                batch = next(batches)
            yield batch
    finally:
        _end_workers(batches)


def _end_workers(batches: Any) -> None:
    """Ends the loader's processes; kills those that do not end on request."""
    # A traceback may keep the loader alive, and its workers ignore SIGINT and SIGTERM.
    processes = list(getattr(batches, "_workers", []))
    if processes:
        batches._shutdown_workers()
    for process in processes:
        if process.is_alive():
            process.kill()


@contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Explains the sudden death of a loader process, which interrupts the main process wherever it is.

    Raises:
        InputError: in place of the loader's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if "DataLoader worker" not in text or not any(word in text for word in ("killed by", "exited unex", "Memory")):
            raise
        raise InputError(
            f"a loader process was killed ({text.splitlines()[0].strip()}): the machine is probably out of memory; "
            "lower train.num_workers or data.cache_mb"
        ) from error


def _init_worker(_worker: int) -> None:
    """One thread for each worker, because the workers already run in parallel."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process decides when to stop
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


@contextmanager
def _explain_errors(notes: ReadingNotes, seconds: int) -> Iterator[None]:
    """Names the file that a worker hangs on, and removes the traceback from a worker's InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        raise InputError(
            f"the loader returned no batch for {seconds} s: {notes.describe()}; check that file and its disk, or raise "
            "data.timeout_seconds"
        ) from error
