"""Learning to classify: the data, the loss and the metrics of a classifier's run.

Legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detector.config import ClassifyConfig
from detector.data.image_folder import ClassBatch, class_batches, open_image_folder
from detector.evaluate.classification import classify_all, require_classes, top_k_of
from detector.report.classification import write_classification_report
from detector.train.distributed import Ranks
from detector.train.replay import save_class_batch
from detector.train.state import RunState
from detector.train.task import Loss, Measurement


class ClassificationTask:
    """See `Task`.

    Args:
        config: the experiment's config.
        ranks: this process among those that train together.

    Raises:
        InputError: the splits have different class folders.
    """

    terms: tuple[str, ...] = ("cross_entropy",)
    metric = "top1"

    def __init__(self, config: ClassifyConfig, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        data, num_classes = config.data, config.model.num_classes
        self.train_set = open_image_folder(data.root, data.train, num_classes=num_classes)
        self.val_set = open_image_folder(data.root, data.val, num_classes=num_classes)
        require_classes(self.val_set, self.train_set.class_names, self.train_set.name)
        self.notes: dict[str, Any] = {"class_names": list(self.train_set.class_names)}

    def describe_data(self) -> Iterable[str]:
        return [str(dataset) for dataset in (self.train_set, self.val_set)]

    def batches(self, start_step: int) -> Generator[ClassBatch]:
        return class_batches(
            self.train_set, self.config, start_step=start_step, rank=self.ranks.rank, num_ranks=self.ranks.size
        )

    def build_loss(self, network: nn.Module) -> Loss:
        del network  # the same loss for every network
        smoothing, batch_size = self.config.loss.label_smoothing, self.config.train.batch_size

        def compute(logits: Tensor, batch: ClassBatch) -> Tensor:
            targets = smooth(batch.targets.to(self.ranks.device, non_blocking=True), smoothing)
            return cross_entropy(logits.float(), targets, reduction="sum")[None] / batch_size  # (1,)

        return compute

    def measure(self, state: RunState, ranks: Ranks, *, progress: bool) -> Measurement:
        """See `Task`."""
        network = state.evaluated_network()
        training = network.training
        mine = range(ranks.rank, len(self.val_set), ranks.size)
        try:
            answers = classify_all(network.eval(), self.val_set, mine, self.config, ranks.device, progress=progress)
        finally:
            network.train(training)
        answers = sorted(ranks.gather(answers), key=lambda answer: answer.index)
        metrics = ranks.broadcast(top_k_of(answers) if ranks.first else {})
        summary = f"top-1 {metrics['top1']:.4f}, top-5 {metrics['top5']:.4f}"
        return Measurement(metrics, summary, details=answers)

    def save_batch(self, folder: Path, batch: ClassBatch) -> None:
        save_class_batch(folder, batch)

    def write_report(self, path: Path, state: RunState, measurement: Measurement, *, progress: bool) -> None:
        """See `Task`."""
        del state, progress  # `measurement` holds all that the report needs
        write_classification_report(path, self.config, self.train_set, self.val_set, measurement.details)


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Darknet's label smoothing: a target of 1 becomes 1 - e, the other classes share e; (B, K) -> (B, K)."""
    if smoothing == 0:
        return targets
    others = max(targets.shape[1] - 1, 1)
    return targets * (1 - smoothing) + (1 - targets) * (smoothing / others)
