"""Where a run writes what it measures: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from detector.checkpoint import write_atomically
from detector.structures import Image


class RunLog:
    """The written record of a run.

    metrics.jsonl holds only what follows from config and seed, no times, so that equal runs have equal files. Speeds go
    to TensorBoard and to the bar.

    Args:
        run_dir: of the run.
        start_step: lines beyond it, of a run that was cut off after its last checkpoint, are removed.
        max_steps: of the run, for the bar.
        progress: show a bar on stderr.
    """

    def __init__(self, run_dir: Path, start_step: int, max_steps: int, progress: bool) -> None:
        self.shows_progress = progress
        self._path = run_dir / "metrics.jsonl"
        self._truncate(start_step)
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        self._bar = tqdm(total=max_steps, initial=start_step, unit="step", disable=not progress, dynamic_ncols=True)

    def _truncate(self, start_step: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= start_step]  # type: ignore[operator]
        write_atomically(self._path, "".join(f"{line}\n" for line in kept).encode())

    def advance(self, state: str) -> None:
        """One step more on the bar, with a few words behind it."""
        self._bar.update()
        self._bar.set_postfix_str(state, refresh=False)

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Appends one line, and its numbers as TensorBoard scalars, after step `step` (counted from 1)."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}) + "\n")
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """A number for TensorBoard only."""
        self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: Image, step: int) -> None:
        """A picture (H, W, 3) uint8 RGB for TensorBoard."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def say(self, message: str) -> None:
        """A line for people, on stderr, above the bar."""
        self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
        self._writer.close()


class SilentLog:
    """The log of a rank that is not the first: nothing is written."""

    shows_progress = False

    def advance(self, state: str) -> None:
        pass

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        pass

    def scalar(self, name: str, value: float, step: int) -> None:
        pass

    def picture(self, name: str, image: Image, step: int) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


def _step_of(line: str) -> int | None:
    """The step of a line; None for one that was cut off while being written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
