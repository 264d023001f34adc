"""What the training loop needs from a task: training a detector or a classifier.

Legend: B images in a part of a batch, T loss terms.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from detector.structures import Image
from detector.train.distributed import Ranks
from detector.train.state import RunState


class AnyBatch(Protocol):
    """The part of a batch that the training loop reads; only the task reads the targets."""

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W) uint8."""

    @property
    def image_ids(self) -> list[int | str]:
        """B names for messages."""


Loss = Callable[[Any, Any], Tensor]
"""(outputs of the network, batch) -> loss terms (T,); their sum is minimised."""


@dataclass(frozen=True)
class Measurement:
    """One evaluation of the network that would be released.

    Attributes:
        metrics: the same on all ranks.
        summary: the most important metrics in a few words.
        images: some annotated images for TensorBoard; on rank 0 only.
        details: what the task's report is made from; on rank 0 only.
        warning: what is wrong with the network, for the user.
    """

    metrics: dict[str, Any]
    summary: str
    images: list[Image] = field(default_factory=list)
    details: Any = None
    warning: str = ""


class Task(Protocol):
    """Data, loss and metrics of a run.

    Attributes:
        terms: the names of the T loss terms.
        metric: the one from `measure` that decides which weights are the best.
        notes: facts that the run's files record and that must be the same when the run resumes.
    """

    terms: tuple[str, ...]
    metric: str
    notes: dict[str, Any]

    def describe_data(self) -> Iterable[str]:
        """A line for each split: what is in it, and what was wrong with it."""

    def batches(self, start_step: int) -> Generator[Any]:
        """Yields the parts of all batches for this rank, from `start_step` on; see `ordered_batches`."""

    def build_loss(self, network: nn.Module) -> Loss:
        """The loss for the network of the run."""

    def measure(self, state: RunState, ranks: Ranks, *, progress: bool) -> Measurement:
        """Evaluates on the validation split; the ranks share the work. Raises: InputError."""

    def save_batch(self, folder: Path, batch: Any) -> None:
        """Writes a batch for inspection. Raises: OSError."""

    def write_report(self, path: Path, state: RunState, measurement: Measurement, *, progress: bool) -> None:
        """Writes the run's report. Raises: InputError: an image cannot be read."""
