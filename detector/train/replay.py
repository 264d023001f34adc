"""Rebuilds the batch of any training step, to show what the network saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from detector.config import ClassifyConfig, DetectConfig, RunConfig
from detector.data.batch import Batch
from detector.data.collate import collate
from detector.data.dataset import DetectionDataset
from detector.data.image_folder import ClassBatch, ClassSamples, collate_classes, open_image_folder
from detector.data.images import write_image
from detector.data.samples import TrainingSamples
from detector.errors import InputError
from detector.render import draw, tile
from detector.structures import Detections


def rebuild_batch(config: DetectConfig, dataset: DetectionDataset, step: int) -> Batch:
    """The whole batch of a step (counted from 1, as in the log); it is the same in every run of this config and seed.

    Raises:
        InputError: the schedule has no such step.
    """
    _check_step(config, step)
    samples = TrainingSamples(dataset, config)
    return collate([samples[(step - 1, slot)] for slot in range(config.train.batch_size)])


def rebuild_class_batch(config: ClassifyConfig, step: int) -> ClassBatch:
    """`rebuild_batch` for a classifier. Raises: InputError: no such step, or the data are missing."""
    _check_step(config, step)
    dataset = open_image_folder(config.data.root, config.data.train, num_classes=config.model.num_classes)
    samples = ClassSamples(dataset, config)
    return collate_classes([samples[(step - 1, slot)] for slot in range(config.train.batch_size)])


def save_class_batch(folder: Path, batch: ClassBatch) -> None:
    """Writes the images as PNG, and their names and targets as batch.json. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(batch.images.permute(0, 2, 3, 1).cpu().numpy()):  # (S, S, 3)
        write_image(folder / f"{number:03}.png", image)
    record = {"image_ids": batch.image_ids, "targets": batch.targets.tolist()}
    (folder / "batch.json").write_text(json.dumps(record), encoding="utf-8")


def _check_step(config: RunConfig, step: int) -> None:
    if not 1 <= step <= config.train.max_steps:
        raise InputError(f"--replay {step}: the steps of this config are 1 to {config.train.max_steps}")


def save_batch_image(path: Path, batch: Batch, class_names: tuple[str, ...]) -> None:
    """Draws the images with their objects, side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for number, image in enumerate(batch.images):
        boxes, labels = batch.objects(number)
        objects = Detections(boxes.numpy(), np.ones(len(labels), np.float32), labels.numpy())
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (H, W, 3)
        images.append(draw(pixels, objects, class_names, scores=False))
    height, width = images[0].shape[:2]
    columns = min(len(images), 4)
    write_image(path, tile(images, columns=columns, cell_hw=(height, width)))
