"""Watches the processes that read pictures, so that one that hangs can be named."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

_DUMP_SECONDS = 5.0


class ReadingWatch:
    """Each process notes what it reads in a file of its own; the main process reads the notes when no batch comes."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="detector-reading-"))
        self.reading = ""
        self._note: int | None = None

    def start(self, worker: int) -> None:
        """Called in worker process `worker`: from now on its notes and its stacks can be had."""
        (self.folder / f"{worker}.pid").write_text(str(os.getpid()))
        self._note = os.open(self.folder / f"{worker}.note", os.O_RDWR | os.O_CREAT, 0o600)
        self._stacks = (self.folder / f"{worker}.stacks").open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)

    def note(self, path: str) -> None:
        """What is being read now; empty when it is done."""
        self.reading = path
        if self._note is not None:
            content = f"{time.time():.0f} {path}" if path else ""
            os.ftruncate(self._note, 0)
            os.pwrite(self._note, content.encode(errors="replace"), 0)

    def report(self) -> tuple[str, str]:
        """What every worker reads, in one line, and their stacks."""
        lines, stacks = [], []
        for file in sorted(self.folder.glob("*.pid")):
            worker, pid = file.stem, int(file.read_text())
            since, _, path = file.with_suffix(".note").read_text(errors="replace").partition(" ")
            if path:
                lines.append(f"worker {worker} has been reading {path} for {time.time() - float(since):.0f} s")
            stacks.append(f"worker {worker}, process {pid}\n{self._stacks_of(pid, file.with_suffix('.stacks'))}")
        return "; ".join(lines) or "no worker is reading a picture", "\n".join(stacks)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stacks_of(self, pid: int, file: Path) -> str:
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            return "(the process has ended)\n"
        deadline = time.monotonic() + _DUMP_SECONDS
        while time.monotonic() < deadline and not file.read_text():
            time.sleep(0.05)
        time.sleep(0.1)
        return file.read_text() or "(it does not answer: it waits inside the kernel, for a disk or a network drive)\n"
