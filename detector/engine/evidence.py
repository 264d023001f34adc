"""The pictures on which an export is compared, and the AP50 of a runtime on them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detector.config import SyntheticConfig, parse_experiment_text
from detector.data import open_dataset
from detector.data.dataset import DetectionDataset
from detector.data.synthetic import ensure_synthetic_dataset
from detector.data.transforms import fit_image
from detector.engine.evaluate import COCO_DETECTIONS, MAX_DETECTIONS, detect_all, score
from detector.errors import InputError
from detector.export.write import Evidence
from detector.load import Loaded, LoadedDetector
from detector.predict import Predictor
from detector.runtime import Pixels, Runtime
from detector.runtime.record import Suppression

MAX_PICTURES = 300
NUM_DRAWN = 8


def gather_evidence(
    loaded: LoadedDetector,
    size_hw: tuple[int, int] | None = None,
    *,
    data: str | None = None,
    split: str | None = None,
    images: str | None = None,
) -> Evidence:
    """Pictures of a data set with its labels; without one, the data that the weights were trained on, else drawn ones.

    Args:
        loaded: the weights.
        size_hw: of the network's input; None = as it was trained.
        data: any data set that the tools read; None = only pictures are compared, no AP50.
        split: of it; None = the training split of the config.
        images: folder of the pictures of a COCO JSON.

    Raises:
        InputError: there is no such data set, or it has no picture.
    """
    stored = loaded.info.get("config")
    config = parse_experiment_text(stored, str(loaded.path)) if stored else None
    policy = config.data.bad_labels if config else "clip"
    if data is not None:
        split = split or (config.data.train if config and not data.endswith(".json") else None)
        dataset = open_dataset(data, split, images_dir=images, class_names=loaded.class_names, policy=policy)
        pictures = _fit(dataset, loaded, size_hw, MAX_PICTURES)

        def measure(runtime: Runtime, indices: Sequence[int], suppression: Suppression | None = None) -> float:
            return measure_ap50(runtime, loaded, dataset, indices, size_hw=size_hw, suppression=suppression)

        return Evidence(pictures, f"{len(pictures)} pictures of {dataset.name}", measure, len(dataset))
    if config is not None and Path(config.data.root).exists():
        dataset = open_dataset(config.data.root, config.data.val, class_names=loaded.class_names, policy=policy)
        pictures = _fit(dataset, loaded, size_hw, NUM_DRAWN)
        return Evidence(pictures, f"{len(pictures)} pictures of {dataset.name}")
    with tempfile.TemporaryDirectory() as folder:
        ensure_synthetic_dataset(Path(folder), SyntheticConfig(1, NUM_DRAWN, (480, 640), 0))
        dataset = open_dataset(folder, "val")
        pictures = _fit(dataset, loaded, size_hw, NUM_DRAWN)
    return Evidence(pictures, f"{len(pictures)} drawn pictures")


def _fit(dataset: DetectionDataset, loaded: LoadedDetector, size_hw: tuple[int, int] | None, count: int) -> Pixels:
    """The first pictures of a data set in the network's size."""
    settings = loaded.preprocess
    if not len(dataset):
        raise InputError(f"{dataset.name}: has no pictures to compare on")
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
    suppression: Suppression | None = None,
) -> float:
    """AP50 of a runtime on some images of a data set; 0 where there is no object.

    The thresholds are those of the config that the weights were trained with, unless a suppression is given.
    """
    stored = loaded.info.get("config")
    settings = parse_experiment_text(stored, str(loaded.path)).evaluate if stored else None
    thresholds = Suppression(
        score_threshold=settings.score_threshold if settings else 0.001,
        nms_threshold=settings.nms_threshold if settings else 0.45,
        max_detections=MAX_DETECTIONS,
    )
    predictor = Predictor.from_runtime(
        runtime,
        decoder=loaded.decoder,
        preprocess=replace(loaded.preprocess, size_hw=size_hw or loaded.preprocess.size_hw),
        class_names=loaded.class_names,
        **vars(suppression or thresholds),
    )
    results = detect_all(predictor, dataset, indices)
    coco_detections = settings.max_detections if settings else COCO_DETECTIONS
    return score(dataset, results, coco_detections=coco_detections, only=indices).coco.compute()["ap50"] or 0.0
