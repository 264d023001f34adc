"""Where a run writes what it measures: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from detector.config import RunConfig
from detector.files import write_atomically
from detector.structures import Image


class RunLog:
    """The written record of a run.

    metrics.jsonl holds only what config and seed determine, no times, so that equal runs have equal files. Speeds go
    to TensorBoard and to the progress bar.

    Args:
        config: the run's config, with run_dir set.
        start_step: later lines, from a run that stopped after its last checkpoint, are removed.
        enabled: whether this process writes anything; only rank 0 does.
        progress: show a bar on stderr.
    """

    def __init__(self, config: RunConfig, *, start_step: int, enabled: bool, progress: bool) -> None:
        run_dir, max_steps = Path(config.run_dir or "."), config.train.max_steps
        self.shows_progress = enabled and progress
        self._path = run_dir / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        if enabled:
            self._truncate(start_step)
            self._writer = SummaryWriter(
                str(run_dir / "tensorboard"), purge_step=start_step + 1 if start_step else None
            )
        self._bar = tqdm(
            total=max_steps, initial=start_step, unit="step", disable=not self.shows_progress, dynamic_ncols=True
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def close_bar(self) -> None:
        """Ends the bar of the steps; what follows has bars of its own."""
        self._bar.close()

    def advance(self, words: str) -> None:
        """Advances the bar by one step and shows `words` after it."""
        self._bar.update()
        self._bar.set_postfix_str(words, refresh=False)

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Appends one line, and its numbers as TensorBoard scalars, after step `step` (counted from 1)."""
        if self._writer is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}) + "\n")
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number to TensorBoard only."""
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, image: Image, step: int) -> None:
        """Writes an image (H, W, 3) uint8 RGB to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def print(self, message: str) -> None:
        """Prints a line on stderr, above the bar; an empty message prints nothing."""
        if self._writer is not None and message:
            self._bar.write(message, file=sys.stderr)

    def _truncate(self, start_step: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= start_step]  # type: ignore[operator]
        write_atomically(self._path, "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> int | None:
    """The step of a line; None for one that was cut off while being written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
