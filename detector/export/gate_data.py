"""The images on which an export is compared, and the AP50 of a runtime on them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from detector.config import SyntheticConfig
from detector.data.dataset import DetectionDataset
from detector.data.open import open_dataset
from detector.data.synthetic import ensure_synthetic_dataset
from detector.errors import InputError
from detector.evaluate.detection import detect_all, evaluation_thresholds, score
from detector.inference.find import Loaded
from detector.inference.predictor import Predictor
from detector.inference.weights import LoadedDetector
from detector.postprocess import Thresholds
from detector.preprocess import fit_image
from detector.runtime.protocol import Pixels, Runtime

MAX_IMAGES = 300
NUM_DRAWN = 8


class MeasureAP50(Protocol):
    """AP50 of a runtime on the images with these indices, with the config's thresholds or the given ones."""

    def __call__(self, runtime: Runtime, indices: Sequence[int], suppression: Thresholds | None = None) -> float: ...


@dataclass(frozen=True)
class GateData:
    """What the gate compares on.

    Attributes:
        images: (B, H, W, 3) uint8 RGB of the network's size.
        origin: where they come from, for the record.
        measure: measures AP50; None = there are no labels.
        num_images: number of images that `measure` can use.
    """

    images: Pixels
    origin: str
    measure: MeasureAP50 | None = None
    num_images: int = 0


def gather_gate_data(
    loaded: LoadedDetector,
    size_hw: tuple[int, int] | None = None,
    *,
    data: str | None = None,
    split: str | None = None,
    images_dir: str | None = None,
) -> GateData:
    """Images and labels of a data set; without one, images of the weights' own data, else drawn images.

    Args:
        loaded: the weights.
        size_hw: size of the network's input; None = as it was trained.
        data: any data set that the tools read; None = only raw maps and boxes are compared, no AP50.
        split: split of the data set; None = the training split of the config.
        images_dir: folder of the images of a COCO JSON.

    Raises:
        InputError: there is no such data set, or it has no images.
    """
    config = loaded.config
    policy = config.data.bad_labels if config else "clip"
    if data is not None:
        split = split or (config.data.train if config and not data.endswith(".json") else None)
        dataset = open_dataset(data, split, images_dir=images_dir, class_names=loaded.class_names, policy=policy)
        images = _fit(dataset, loaded, size_hw, MAX_IMAGES)

        def measure(runtime: Runtime, indices: Sequence[int], suppression: Thresholds | None = None) -> float:
            return measure_ap50(runtime, loaded, dataset, indices, size_hw=size_hw, suppression=suppression)

        origin = f"{len(images)} images of {dataset.name}"
        if dataset.crowd.all():  # an AP50 of nothing would agree with anything
            return GateData(images, f"{origin}, without a labelled object")
        return GateData(images, origin, measure, len(dataset))
    if config is not None and Path(config.data.root).exists():
        dataset = open_dataset(config.data.root, config.data.val, class_names=loaded.class_names, policy=policy)
        images = _fit(dataset, loaded, size_hw, NUM_DRAWN)
        return GateData(images, f"{len(images)} images of {dataset.name}")
    with tempfile.TemporaryDirectory() as folder:
        ensure_synthetic_dataset(Path(folder), SyntheticConfig(1, NUM_DRAWN, (480, 640)))
        images = _fit(open_dataset(folder, "val"), loaded, size_hw, NUM_DRAWN)
    return GateData(images, f"{len(images)} drawn images")


def _fit(dataset: DetectionDataset, loaded: LoadedDetector, size_hw: tuple[int, int] | None, count: int) -> Pixels:
    """The first images of a data set in the network's size."""
    settings = loaded.preprocess
    if not len(dataset):
        raise InputError(f"{dataset.name}: has no images to compare on")
    return np.stack(
        [
            fit_image(
                dataset.read(index).image,
                size_hw or settings.size_hw,
                letterbox=settings.letterbox,
                align_corners=settings.align_corners,
            )[0]
            for index in range(min(count, len(dataset)))
        ]
    )


def measure_ap50(
    runtime: Runtime,
    loaded: Loaded,
    dataset: DetectionDataset,
    indices: Sequence[int],
    *,
    size_hw: tuple[int, int] | None = None,
    suppression: Thresholds | None = None,
) -> float:
    """AP50 of a runtime on some images of a data set; 0 if there are no objects.

    The thresholds are those of the config that the weights were trained with, unless others are given.
    """
    thresholds = suppression or evaluation_thresholds(loaded.config.evaluate if loaded.config else None)
    sized = replace(loaded, preprocess=replace(loaded.preprocess, size_hw=size_hw or loaded.preprocess.size_hw))
    results = detect_all(Predictor.from_runtime(runtime, sized, thresholds), dataset, indices)
    return score(dataset, results, only=indices).coco.compute()["ap50"] or 0.0
