"""What the training loop asks of whatever is being learnt: a detector or a classifier."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from detector.engine.distributed import Ranks
from detector.engine.log import RunLog, SilentLog
from detector.engine.state import RunState
from detector.structures import Image


class AnyBatch(Protocol):
    """A batch as far as the training step looks into it; the targets are the task's own."""

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W) uint8."""

    @property
    def image_ids(self) -> list[int | str]:
        """B names for messages."""


Loss = Callable[[Any, Any], dict[str, Tensor]]
"""(outputs of the network, batch) -> loss terms by name; their sum is minimised."""
SaveBatch = Callable[[Path, Any], None]
"""Writes a batch into a folder so that it can be looked at; raises OSError."""


class Task(Protocol):
    """Data, loss and metrics of a run.

    Attributes:
        terms: the names of the loss terms.
        metric: the one of `measure` that decides which weights are the best.
        notes: what else the run's files record, and must find again when the run goes on.
    """

    terms: tuple[str, ...]
    metric: str
    notes: dict[str, Any]

    def describe_data(self) -> Iterable[str]:
        """A line for each split: what is in it, and what was wrong with it."""

    def batches(self, start_step: int, report: Path) -> Generator[Any]:
        """The parts of all batches that are for this rank, from `start_step` on; see `ordered_batches`."""

    def build_loss(self, network: nn.Module) -> Loss:
        """The loss for the network of the run."""

    def measure(
        self, state: RunState, log: RunLog | SilentLog, ranks: Ranks
    ) -> tuple[dict[str, Any], list[Image], str]:
        """Metrics of the network that would be released, some pictures, and the metrics in a few words."""

    def save_batch(self, folder: Path, batch: Any) -> None:
        """Writes a batch so that it can be looked at. Raises: OSError."""

    def write_report(self, path: Path, state: RunState, *, progress: bool) -> None:
        """Writes the run's page. Raises: InputError: a picture cannot be read."""
