"""One temporary folder for a training process and its loader; it is removed even if the process is killed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "detector-train-"
NAME = re.compile(PREFIX + r"\d+-\w+")
LOCK = "lock"
OLD_SECONDS = 3600
"""A folder without a lock for this long was left by a process that was killed while it made it."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Puts Python's temporary files (including the loader's sockets) into one folder, and removes it at the end.

    A killed process leaves its folder; the next training process removes it. Each process locks a file in its folder,
    and the system releases the lock when the process ends.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    before = tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    with (folder / f"{LOCK}.new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(lock.name).rename(folder / LOCK)  # now others see it, and see it locked
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Removes the folders of dead processes. What only has a similar name, or is not known to be ours, stays."""
    for folder in parent.glob(f"{PREFIX}*"):
        if not NAME.fullmatch(folder.name) or folder.is_symlink():
            continue
        with suppress(OSError):
            if not (folder / LOCK).exists():
                if time.time() - folder.stat().st_mtime > OLD_SECONDS:
                    (folder / f"{LOCK}.new").unlink(missing_ok=True)
                    folder.rmdir()  # OSError: it is not empty, and not ours
                continue
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, an OSError: its process is alive
                shutil.rmtree(folder, ignore_errors=True)
