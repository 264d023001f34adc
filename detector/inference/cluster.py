"""Predicts shards of images as tasks of Ray, on one machine or many. Only this file imports Ray, an extra.

Tasks instead of actors: a lost machine's tasks run again elsewhere, and nothing is pinned to a place that may not come.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from detector.errors import InputError
from detector.extras import require
from detector.inference.folder import Compute, Line, compute_here
from detector.inference.work import Work, Worker

BATCHES_IN_SHARD = 4
WAITING_SHARDS = 2
"""For each processor: so many are handed out, so that none waits for work and the driver's memory stays flat."""
LOCAL = "local"
CONNECT_SECONDS = 5.0


@contextmanager
def join_cluster(address: str) -> Iterator[None]:
    """Connects to a cluster, or starts one on this machine.

    Args:
        address: "local", "auto" or HOST:PORT.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    require("ray", "--ray")
    import ray

    joined = ray.is_initialized()
    if not joined:
        try:
            host, _, port = address.rpartition(":")
            if port.isdigit() and "://" not in host:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            ray.init(
                address=None if address == LOCAL else address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"--ray {address}: no cluster there ({reason})") from error
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def compute_on_cluster(work: Work) -> Compute:
    """The same lines as `compute_here`, shard by shard, computed by every processor of the cluster.

    Args:
        work: the model's files, the images and the package must be on every machine, under the same paths.
    """

    def compute(images: Sequence[Path], done: set[str]) -> Iterator[list[Line]]:
        import ray

        task = ray.remote(num_cpus=1, max_retries=-1)(_predict_shard)
        size = work.batch_size * BATCHES_IN_SHARD
        shards = (images[first : first + size] for first in range(0, len(images), size))
        wanted = (shard for shard in shards if any(str(path) not in done for path in shard))
        running: deque[Any] = deque()
        for shard in wanted:
            running.append(task.remote(work, str(Path.cwd()), [str(path) for path in shard]))
            limit = WAITING_SHARDS * _num_processors()
            if len(running) >= limit:
                yield _fetch(running.popleft(), done)
        while running:
            yield _fetch(running.popleft(), done)

    return compute


def _num_processors() -> int:
    """Of the cluster now."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(int(resources.get("CPU", 1)), 1)


def _fetch(shard: Any, done: set[str]) -> list[Line]:
    """The lines of a shard that were not recorded before. Raises: InputError: a machine cannot compute it."""
    import ray

    try:
        lines: list[Line] = ray.get(shard)
    except ray.exceptions.RayTaskError as error:
        raise InputError(f"--ray: {error.cause}") from error
    return [line for line in lines if line["image"] not in done]


@cache
def _worker(work: Work, folder: str) -> Worker:
    """Opened once in each process, in the folder that paths are relative to."""
    os.chdir(folder)
    return Worker(work, work.load(), threads=1)


def _predict_shard(work: Work, folder: str, paths: list[str]) -> list[Line]:
    """A task."""
    worker = _worker(work, folder)
    compute = compute_here(worker.predict, worker.predictor.class_names, batch_size=work.batch_size)
    return [line for lines in compute([Path(path) for path in paths], set()) for line in lines]
