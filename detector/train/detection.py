"""Learning to detect: the data, the loss and the metrics of a detector's run."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.config import DetectConfig
from detector.data.batch import Batch
from detector.data.dataset import DetectionDataset, describe, nothing_to_learn
from detector.data.loader import training_batches
from detector.data.open import open_dataset
from detector.errors import InputError
from detector.evaluate.confusion import SHOWN_SCORE
from detector.evaluate.detection import Evaluation, detect_all, evaluation_thresholds, score
from detector.inference.build import build_decoder
from detector.inference.predictor import Predictor
from detector.loss import LossTerms, YoloLoss
from detector.render import draw
from detector.report.detection import write_run_report
from detector.structures import Detections, Image
from detector.train.distributed import Ranks
from detector.train.forensics import save_batch
from detector.train.state import RunState
from detector.train.task import Loss, Measurement

NUM_IMAGES = 8
"""Number of annotated images shown in TensorBoard."""


def open_split(config: DetectConfig, split: str) -> DetectionDataset:
    """A split of the config's data set with the model's classes. Raises: InputError."""
    return open_dataset(config.data.root, split, class_names=config.model.class_names, policy=config.data.bad_labels)


class DetectionTask:
    """See `Task`.

    Args:
        config: the experiment's config.
        ranks: this process among those that train together.
    """

    terms: tuple[str, ...] = LossTerms._fields

    def __init__(self, config: DetectConfig, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.metric: str = config.evaluate.metric
        self.notes: dict[str, Any] = {}  # the classes are in the config
        self.train_set, self.val_set = open_split(config, config.data.train), open_split(config, config.data.val)
        if self.train_set.crowd.all():
            why = nothing_to_learn(self.train_set)
            raise InputError(f"{self.train_set.name}: {why}; tools/doctor.py {config.data.root} lists all problems")

    def describe_data(self) -> Iterable[str]:
        return describe(self.train_set), describe(self.val_set)

    def batches(self, start_step: int) -> Generator[Batch]:
        return training_batches(
            self.train_set, self.config, start_step=start_step, rank=self.ranks.rank, num_ranks=self.ranks.size
        )

    def build_loss(self, network: nn.Module) -> Loss:
        return loss_terms(self.config, network, self.ranks.device)

    def measure(self, state: RunState, ranks: Ranks, *, progress: bool) -> Measurement:
        """See `Task`."""
        mine = range(ranks.rank, len(self.val_set), ranks.size)
        results = ranks.gather(detect_all(self._predictor(state), self.val_set, mine, progress=progress))
        evaluation = score(self.val_set, results) if ranks.first else None
        metrics: dict[str, Any] = ranks.broadcast(evaluation.compute() if evaluation else {})
        summary = f"AP50 {metrics['ap50'] or 0:.4f}, AP {metrics['ap'] or 0:.4f}"
        images = self._annotated(evaluation) if evaluation else []
        return Measurement(metrics, summary, images, evaluation, _collapse(metrics, results))

    def save_batch(self, folder: Path, batch: Batch) -> None:
        save_batch(folder, batch, self.config.model.class_names)

    def write_report(self, path: Path, state: RunState, measurement: Measurement, *, progress: bool) -> None:
        evaluation: Evaluation = measurement.details
        predictor = self._predictor(state)
        write_run_report(path, self.config, predictor, self.train_set, self.val_set, evaluation, progress=progress)

    def _annotated(self, evaluation: Evaluation) -> list[Image]:
        return [
            draw(self.val_set.read(index).image, detections.above(SHOWN_SCORE), self.config.model.class_names)
            for index, detections in evaluation.results[:NUM_IMAGES]
        ]

    def _predictor(self, state: RunState) -> Predictor:
        """The network that would be released, with the evaluation's thresholds."""
        return Predictor.from_network(
            state.evaluated_network(),
            self.config.model,
            self.config.preprocess,
            evaluation_thresholds(self.config.evaluate),
        )


def _collapse(metrics: dict[str, Any], results: Sequence[tuple[int, Detections]]) -> str:
    """What to do about a network that is sure of boxes without size, which finds nothing; empty = it is not one."""
    boxes = np.concatenate(
        [found.above(SHOWN_SCORE).boxes_xyxy for _, found in results] or [np.zeros((0, 4), np.float32)]
    )
    flat = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) < 1
    if metrics["ap50"] or flat.sum() <= len(boxes) / 2:
        return ""
    return (
        f"AP50 is 0 and {flat.sum()} of {len(boxes)} boxes have no width or height: the network has collapsed; "
        "start again with a lower train.learning_rate or a longer train.burn_in"
    )


def loss_terms(config: DetectConfig, network: nn.Module, device: torch.device) -> Loss:
    """The config's loss, in the form that the training loop calls."""
    loss = build_loss(config, network)

    def compute(raw_maps: list[Tensor], batch: Batch) -> Tensor:
        terms = loss(
            [raw_map.float() for raw_map in raw_maps],
            batch.boxes_xyxy.to(device, non_blocking=True),
            batch.labels.to(device, non_blocking=True),
            batch_size=config.train.batch_size,
        )
        return torch.stack(terms)  # (T,)

    return compute


def build_loss(config: DetectConfig, network: nn.Module) -> YoloLoss:
    """The loss that a config describes, for its network. Raises: InputError: it cannot train this network."""
    decoder = build_decoder(config.model, network)
    if decoder.new_coords or len({len(anchors) for anchors in decoder.anchors_wh}) > 1:
        raise InputError("this cfg cannot be trained: all [yolo] sections need new_coords=0 and masks of equal length")
    return YoloLoss(
        anchors_wh=torch.from_numpy(np.stack(decoder.anchors_wh)).to(next(network.parameters()).device),
        strides=decoder.strides,
        num_classes=config.model.num_classes,
        scale_xy=decoder.scale_xy,
        box=config.loss.box,
        box_weight=config.loss.box_weight,
        objectness_weight=config.loss.objectness_weight,
        class_weight=config.loss.class_weight,
        ignore_threshold=config.loss.ignore_threshold,
        match_threshold=config.loss.match_threshold,
        label_smoothing=config.loss.label_smoothing,
    )
