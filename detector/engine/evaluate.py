"""Runs a predictor over a data set and measures what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from detector.data.dataset import DetectionDataset
from detector.engine.distributed import Ranks
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
    ranks: Ranks | None = None,
) -> Evaluation:
    """Predicts every image of a data set.

    Args:
        predictor: with the thresholds of the evaluation; its class names are the data set's.
        dataset: images and objects.
        coco_detections: so many of an image count in COCO's metric, the best ones.
        progress: show a bar on stderr.
        on_image: called with every image (of this rank) and what was found in it, for plots.
        ranks: processes that share the images among them; None = this one alone.

    Returns:
        The evaluation, ready to `compute`; on ranks other than the first an empty one.

    Raises:
        InputError: a picture cannot be read: a number over part of the data would be no measurement.
    """
    truth, category_ids, image_ids = dataset.ground_truth()
    coco, darknet = CocoEvaluator(truth, category_ids, dataset.class_names), DarknetEvaluator(len(dataset.class_names))
    rank, num_ranks = (ranks.rank, ranks.size) if ranks else (0, 1)
    mine = range(rank, len(dataset), num_ranks)
    results: list[tuple[int, Detections]] = []
    for first in tqdm(range(0, len(mine), BATCH_SIZE), desc="evaluate", disable=not progress, leave=False):
        indices = mine[first : first + BATCH_SIZE]
        samples = [dataset.read(index) for index in indices]
        found = predictor.predict_batch([sample.image for sample in samples], darknet_ranks=True)
        for index, sample, detections in zip(indices, samples, found, strict=True):
            results.append((index, detections))
            if on_image is not None:
                on_image(sample, detections)
    for index, detections in sorted(ranks.gather(results) if ranks else results, key=lambda item: item[0]):
        coco.update(image_ids[index], detections.best(coco_detections))
        objects = dataset.objects(index)
        real = ~dataset.crowd[objects]
        darknet.update(dataset.boxes_xyxy[objects][real], dataset.labels[objects][real], detections)
    return Evaluation(coco, darknet)
