"""Batches for training, read and augmented by worker processes."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from detector.config import ExperimentConfig, TrainConfig
from detector.data.collate import collate
from detector.data.dataset import DetectionDataset
from detector.data.sampler import StepSampler
from detector.data.samples import TrainingSamples
from detector.data.watch import ReadingWatch
from detector.errors import InputError
from detector.structures import Batch

_Sample = TypeVar("_Sample")
_Batch = TypeVar("_Batch")


def training_batches(
    dataset: DetectionDataset,
    config: ExperimentConfig,
    *,
    start_step: int,
    end_step: int,
    rank: int = 0,
    num_ranks: int = 1,
    report: Path | None = None,
) -> Generator[Batch]:
    """Batches of a detection data set for training; see `ordered_batches`."""
    watch = ReadingWatch()
    return ordered_batches(
        TrainingSamples(dataset, config, watch),
        collate,
        watch,
        config.train,
        timeout_seconds=config.data.timeout_seconds,
        start_step=start_step,
        end_step=end_step,
        rank=rank,
        num_ranks=num_ranks,
        report=report,
    )


def ordered_batches(
    samples: TorchDataset[_Sample],
    collate_samples: Callable[[Sequence[_Sample]], _Batch],
    watch: ReadingWatch,
    settings: TrainConfig,
    *,
    timeout_seconds: int,
    start_step: int,
    end_step: int,
    rank: int = 0,
    num_ranks: int = 1,
    report: Path | None = None,
) -> Generator[_Batch]:
    """Batches (in `train.subdivisions` parts) from `start_step` to `end_step`; the same ones for any num_workers.

    Args:
        samples: the sample for any (step, slot).
        collate_samples: makes a batch of a part's samples.
        watch: where `samples` note the picture that is being read.
        settings: batch size, subdivisions and workers.
        timeout_seconds: see `DataConfig`.
        start_step: the first optimiser step, counted from 0.
        end_step: the step after the last one.
        rank: which share of every batch is read, for processes that train together.
        num_ranks: how many shares there are.
        report: where the stacks go when no batch comes for `data.timeout_seconds`.

    Raises:
        InputError: a picture cannot be read and data.bad_labels is `fail`, or no batch came in time.
    """
    sampler = StepSampler(
        start_step=start_step,
        end_step=end_step,
        batch_size=settings.batch_size,
        subdivisions=settings.subdivisions,
        rank=rank,
        num_ranks=num_ranks,
    )
    workers = settings.num_workers
    loader = DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_samples,
        worker_init_fn=partial(_init_worker, watch),
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        timeout=timeout_seconds if workers else 0,
    )
    guard = _explained if workers else _alarm
    batches: Any = None
    try:
        batches = iter(loader)
        for _ in range(len(sampler)):
            with guard(watch, timeout_seconds, report):
                batch = next(batches)
            yield batch
    finally:
        _end_workers(batches)
        watch.close()


def _end_workers(batches: Any) -> None:
    """Ends the loader's processes, by force where they do not go."""
    # A traceback may keep the loader alive, and its workers ignore the signals that end a process politely.
    processes = list(getattr(batches, "_workers", []))
    if processes:
        batches._shutdown_workers()
    for process in processes:
        if process.is_alive():
            process.kill()


@contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Puts the sudden death of a loader process, which shows wherever the main process is just then, into words.

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


def _init_worker(watch: ReadingWatch, worker: int) -> None:
    """One thread for each worker: they already run side by side."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process decides when to stop
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    watch.start(worker)


@contextmanager
def _explained(watch: ReadingWatch, seconds: int, report: Path | None) -> Iterator[None]:
    """Names what a worker hangs at, and takes the traceback out of a worker's InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        raise _stuck(*watch.report(), seconds, report) from error


def _stuck(reading: str, stacks: str, seconds: int, report: Path | None) -> InputError:
    where = ""
    if report is not None:
        try:
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(stacks, encoding="utf-8")
            where = f"; stacks in {report}"
        except OSError as error:
            where = f"; stacks not written ({error.strerror})"
    return InputError(
        f"the loader gave no batch for {seconds} s: {reading}{where}; look at that file and its disk, or raise "
        "data.timeout_seconds"
    )


class _StuckError(Exception):
    """Rings through everything that mends an InputError on the way."""


@contextmanager
def _alarm(watch: ReadingWatch, seconds: int, report: Path | None) -> Iterator[None]:
    """Interrupts what the main process does inside when it takes too long."""

    def ring(_: int, frame: FrameType | None) -> None:
        raise _StuckError(watch.reading or "not in a picture file", "".join(traceback.format_stack(frame)))

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _StuckError as error:
        reading, stacks = error.args
        raise _stuck(reading, stacks, seconds, report) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
