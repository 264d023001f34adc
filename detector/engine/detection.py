"""Learning to detect: the data, the loss and the metrics of a detector's run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.build import build_decoder
from detector.config import ExperimentConfig
from detector.data import open_dataset
from detector.data.dataset import DetectionDataset, summarize
from detector.data.loader import training_batches
from detector.engine.distributed import Ranks
from detector.engine.evaluate import MAX_DETECTIONS, detect_all, score
from detector.engine.forensics import save_batch
from detector.engine.log import RunLog, SilentLog
from detector.engine.run_report import write_run_report
from detector.engine.state import RunState
from detector.engine.task import Loss
from detector.errors import InputError
from detector.loss import YoloLoss
from detector.predict import Predictor
from detector.render import draw
from detector.structures import Batch, Detections, Image, Sample

NUM_PICTURES = 8
TERMS = ("box", "objectness", "classification")


def open_split(config: ExperimentConfig, split: str) -> DetectionDataset:
    """A split of the config's data set with the model's classes. Raises: InputError."""
    return open_dataset(config.data.root, split, class_names=config.model.class_names, policy=config.data.bad_labels)


class DetectionTask:
    """See `Task`.

    Args:
        config: of the experiment.
        ranks: of which this process is one.
    """

    terms: tuple[str, ...] = TERMS

    def __init__(self, config: ExperimentConfig, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.metric: str = config.evaluate.metric
        self.notes: dict[str, Any] = {}  # the classes stand in the config
        self.train_set, self.val_set = open_split(config, config.data.train), open_split(config, config.data.val)

    def describe_data(self) -> Iterable[str]:
        for dataset in (self.train_set, self.val_set):
            problems = summarize(dataset.problems)
            yield f"{dataset.name}: {len(dataset)} images, {len(dataset.labels)} objects, {problems}"

    def batches(self, start_step: int, report: Path) -> Generator[Batch]:
        return training_batches(
            self.train_set,
            self.config,
            start_step=start_step,
            end_step=self.config.train.max_steps,
            rank=self.ranks.rank,
            num_ranks=self.ranks.size,
            report=report,
        )

    def build_loss(self, network: nn.Module) -> Loss:
        return loss_terms(self.config, network, self.ranks.device)

    def measure(
        self, state: RunState, log: RunLog | SilentLog, ranks: Ranks
    ) -> tuple[dict[str, Any], list[Image], str]:
        """See `Task`."""
        settings = self.config.evaluate
        predictor = self._predictor(state)
        pictures: list[Image] = []

        def keep_picture(sample: Sample, detections: Detections) -> None:
            if len(pictures) < NUM_PICTURES:
                pictures.append(draw(sample.image, detections.above(0.25), predictor.class_names))

        mine = range(ranks.rank, len(self.val_set), ranks.size)
        found = detect_all(predictor, self.val_set, mine, progress=log.shows_progress, on_image=keep_picture)
        results = ranks.gather(found)
        metrics: dict[str, Any] = {}
        if ranks.first:
            metrics = score(self.val_set, results, coco_detections=settings.max_detections).compute()
        metrics = ranks.agree(metrics)
        return metrics, pictures, f"AP50 {metrics['ap50'] or 0:.4f}, AP {metrics['ap'] or 0:.4f}"

    def save_batch(self, folder: Path, batch: Batch) -> None:
        save_batch(folder, batch, self.config.model.class_names)

    def write_report(self, path: Path, state: RunState, *, progress: bool) -> None:
        predictor = self._predictor(state)
        write_run_report(path, self.config, predictor, self.train_set, self.val_set, progress=progress)

    def _predictor(self, state: RunState) -> Predictor:
        """The network that would be released, with the thresholds of the evaluation."""
        return Predictor.from_network(
            state.evaluated_network(),
            self.config.model,
            self.config.preprocess,
            score_threshold=self.config.evaluate.score_threshold,
            nms_threshold=self.config.evaluate.nms_threshold,
            max_detections=MAX_DETECTIONS,
        )


def loss_terms(config: ExperimentConfig, network: nn.Module, device: torch.device) -> Loss:
    """The config's loss as the training step takes it."""
    loss = build_loss(config, network)

    def compute(raw_maps: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        terms = loss(
            [raw_map.float() for raw_map in raw_maps],
            [boxes.to(device, non_blocking=True) for boxes in batch.boxes_xyxy],
            [labels.to(device, non_blocking=True) for labels in batch.labels],
            batch_size=config.train.batch_size,
        )
        return {name: getattr(terms, name) for name in TERMS}

    return compute


def build_loss(config: ExperimentConfig, network: nn.Module) -> YoloLoss:
    """The loss that a config describes, for its network. Raises: InputError for maps that it cannot train."""
    decoder = build_decoder(config.model, network)
    if decoder.new_coords or len({len(anchors) for anchors in decoder.anchors_wh}) > 1:
        raise InputError("training needs [yolo] sections with new_coords=0 and masks of one length")
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
