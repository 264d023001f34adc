"""Runs a predictor over a data set and measures what it finds."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from detector.data.dataset import DetectionDataset
from detector.metrics.coco import CocoEvaluator
from detector.predict import Predictor
from detector.structures import Detections, Sample

BATCH_SIZE = 8


def evaluate(
    predictor: Predictor,
    dataset: DetectionDataset,
    *,
    progress: bool = False,
    on_image: Callable[[Sample, Detections], None] | None = None,
) -> CocoEvaluator:
    """Predicts every image of a data set.

    Args:
        predictor: with the thresholds of the evaluation; its class names are the data set's.
        dataset: images and objects.
        progress: show a bar on stderr.
        on_image: called with every image and what was found in it, for plots.

    Returns:
        An evaluator, ready to `compute`.

    Raises:
        InputError: a picture cannot be read: a number over part of the data would be no measurement.
    """
    truth, category_ids, image_ids = dataset.ground_truth()
    evaluator = CocoEvaluator(truth, category_ids, dataset.class_names)
    for first in tqdm(range(0, len(dataset), BATCH_SIZE), desc="evaluate", disable=not progress, leave=False):
        indices = range(first, min(first + BATCH_SIZE, len(dataset)))
        samples = [dataset.read(index) for index in indices]
        found = predictor.predict_batch([sample.image for sample in samples])
        for index, sample, detections in zip(indices, samples, found, strict=True):
            evaluator.update(image_ids[index], detections)
            if on_image is not None:
                on_image(sample, detections)
    return evaluator
