"""One temporary folder for a training process and its loader, which also goes when the process is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "detector-train-"
LOCK = "lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Makes Python's temporary files (the loader's sockets among them) go into one folder, and removes it at the end.

    A killed process leaves its folder behind; the next one that starts removes it. Whether a folder's process is alive
    shows in a lock that the system takes away when it ends.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    before = tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
