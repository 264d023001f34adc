"""One training at a time in a run's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from detector.errors import InputError
from detector.train.distributed import Ranks

LOCK = ".lock"


@contextmanager
def run_lock(run_dir: Path, ranks: Ranks) -> Iterator[None]:
    """Keeps other trainings out of a folder; the system takes the lock away when the process ends, however it ends.

    Raises:
        InputError: on all ranks, another training is running there.
    """
    held = _take(run_dir) if ranks.first else None
    if ranks.broadcast(ranks.first and held is None):
        raise InputError(f"{run_dir}: another training is running in it; wait for it, or choose run_dir=PATH")
    try:
        yield
    finally:
        if held is not None:
            (run_dir / LOCK).unlink(missing_ok=True)
            held.close()
            if not any(run_dir.iterdir()):
                run_dir.rmdir()  # nothing came of the run


def _take(run_dir: Path) -> IO[str] | None:
    """The lock, or None where another process has it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LOCK
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass  # another has it, or removed it between opening and locking
    file.close()
    return None
