"""Runs a predictor over a data set and measures what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from detector.data.dataset import DetectionDataset
from detector.metrics.coco import CocoEvaluator
from detector.metrics.darknet_map import DarknetEvaluator
from detector.predict import Predictor
from detector.structures import Detections, Sample

BATCH_SIZE = 8
COCO_DETECTIONS = 100
MAX_DETECTIONS = 1000
"""A predictor's limit for an evaluation: Darknet's metric takes them all, COCO's the best hundred."""


@dataclass(frozen=True)
class Evaluation:
    """Both metrics of one pass over the data."""

    coco: CocoEvaluator
    darknet: DarknetEvaluator

    def compute(self) -> dict[str, Any]:
        """COCO's metrics (see `CocoEvaluator.compute`), and Darknet's under `darknet`."""
        darknet = self.darknet.compute()
        del darknet["per_class"]
        for points in (11, 101):
            darknet[f"map50_{points}_points"] = self.darknet.compute(points=points)["map50"]
        return {**self.coco.compute(), "darknet": darknet}


def evaluate(
    predictor: Predictor,
    dataset: DetectionDataset,
    *,
    coco_detections: int = COCO_DETECTIONS,
    progress: bool = False,
    on_image: Callable[[Sample, Detections], None] | None = None,
) -> Evaluation:
    """Predicts every image of a data set and measures what was found.

    Args:
        predictor: with the thresholds of the evaluation; its class names are the data set's.
        dataset: images and objects.
        coco_detections: so many of an image count in COCO's metric, the best ones.
        progress: show a bar on stderr.
        on_image: called with every image and what was found in it, for plots.

    Returns:
        The evaluation, ready to `compute`.

    Raises:
        InputError: a picture cannot be read: a number over part of the data would be no measurement.
    """
    results = detect_all(predictor, dataset, range(len(dataset)), progress=progress, on_image=on_image)
    return score(dataset, results, coco_detections=coco_detections)


def detect_all(
    predictor: Predictor,
    dataset: DetectionDataset,
    indices: Sequence[int],
    *,
    progress: bool = False,
    on_image: Callable[[Sample, Detections], None] | None = None,
) -> list[tuple[int, Detections]]:
    """What is found in these images of a data set, each with its index. See `evaluate`."""
    results: list[tuple[int, Detections]] = []
    for first in tqdm(range(0, len(indices), BATCH_SIZE), desc="evaluate", disable=not progress, leave=False):
        part = indices[first : first + BATCH_SIZE]
        samples = [dataset.read(index) for index in part]
        found = predictor.predict_batch([sample.image for sample in samples], darknet_ranks=True)
        for index, sample, detections in zip(part, samples, found, strict=True):
            results.append((index, detections))
            if on_image is not None:
                on_image(sample, detections)
    return results


def score(
    dataset: DetectionDataset,
    results: list[tuple[int, Detections]],
    *,
    coco_detections: int = COCO_DETECTIONS,
    only: Sequence[int] | None = None,
) -> Evaluation:
    """The evaluation of what was found; the order of the results does not matter.

    Args:
        dataset: with the objects.
        results: index and detections of each image.
        coco_detections: so many of an image count in COCO's metric.
        only: images to measure on; None = all.
    """
    truth, category_ids, image_ids = dataset.ground_truth()
    if only is not None:
        kept = {image_ids[index] for index in only}
        truth = {
            **truth,
            "images": [image for image in truth["images"] if image["id"] in kept],
            "annotations": [each for each in truth["annotations"] if each["image_id"] in kept],
        }
    coco, darknet = CocoEvaluator(truth, category_ids, dataset.class_names), DarknetEvaluator(len(dataset.class_names))
    for index, detections in sorted(results, key=lambda item: item[0]):
        coco.update(image_ids[index], detections.best(coco_detections))
        objects = dataset.objects(index)
        real = ~dataset.crowd[objects]
        darknet.update(dataset.boxes_xyxy[objects][real], dataset.labels[objects][real], detections)
    return Evaluation(coco, darknet)
