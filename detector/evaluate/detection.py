"""Runs a predictor over a data set and measures what it finds."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from detector.config import EvaluateConfig
from detector.data.dataset import DetectionDataset
from detector.evaluate.coco import CocoEvaluator
from detector.evaluate.darknet_map import DarknetEvaluator
from detector.inference.predictor import Predictor
from detector.postprocess import Thresholds
from detector.runtime.threads import usable_cpus
from detector.structures import Detections, Image

BATCH_SIZE = 8
PARTS_AHEAD = 2
"""Batches of images that are being read while one is being predicted."""
COCO_DETECTIONS = 100
MAX_DETECTIONS = 1000
"""Limit per image in an evaluation: Darknet's metric uses all detections, COCO's the best 100."""
Result = tuple[int, Detections]
"""The index of an image of a data set, and what was found in it, in its pixels."""


@dataclass(frozen=True)
class Evaluation:
    """Both metrics of one pass over the data, and the results behind them, in the order of the images."""

    coco: CocoEvaluator
    darknet: DarknetEvaluator
    results: list[Result]

    def compute(self) -> dict[str, Any]:
        """COCO's metrics (see `CocoEvaluator.compute`), and Darknet's under `darknet`."""
        darknet = self.darknet.compute()
        del darknet["per_class"]
        for points in (11, 101):
            darknet[f"map50_{points}_points"] = self.darknet.compute(points=points)["map50"]
        return {**self.coco.compute(), "darknet": darknet}


def evaluation_thresholds(config: EvaluateConfig | None) -> Thresholds:
    """The thresholds to evaluate with: a config's, or the defaults for a model without one."""
    settings = config or EvaluateConfig()
    return Thresholds(settings.score_threshold, settings.nms_threshold, MAX_DETECTIONS)


def evaluate(predictor: Predictor, dataset: DetectionDataset, *, progress: bool = False) -> Evaluation:
    """Predicts every image of a data set and measures what was found.

    Args:
        predictor: has the evaluation's thresholds and the data set's class names.
        dataset: images and objects.
        progress: show a bar on stderr.

    Returns:
        The evaluation, ready to `compute`.

    Raises:
        InputError: an image cannot be read; metrics over part of the data would be wrong.
    """
    return score(dataset, detect_all(predictor, dataset, range(len(dataset)), progress=progress))


def detect_all(
    predictor: Predictor, dataset: DetectionDataset, indices: Sequence[int], *, progress: bool = False
) -> list[Result]:
    """Runs the predictor on these images of a data set. Raises: InputError: an image cannot be read."""
    parts = [indices[first : first + BATCH_SIZE] for first in range(0, len(indices), BATCH_SIZE)]
    results: list[Result] = []
    with closing(_read_ahead(dataset, parts)) as batches:
        shown = tqdm(batches, "evaluate", len(parts), disable=not progress, leave=False)
        for part, images in zip(parts, shown, strict=True):
            results += zip(part, predictor.predict_batch(images, darknet_ranks=True), strict=True)
    return results


def _read_ahead(dataset: DetectionDataset, parts: Sequence[Sequence[int]]) -> Generator[list[Image]]:
    """The images of each part; several threads read the parts that come next."""

    def read(index: int) -> Image:
        return dataset.read(index).image

    waiting: deque[list[Future[Image]]] = deque()
    with ThreadPoolExecutor(usable_cpus()) as readers:
        try:
            for part in parts:
                waiting.append([readers.submit(read, index) for index in part])
                if len(waiting) > PARTS_AHEAD:
                    yield [image.result() for image in waiting.popleft()]
            while waiting:
                yield [image.result() for image in waiting.popleft()]
        finally:
            readers.shutdown(cancel_futures=True)


def score(dataset: DetectionDataset, results: Sequence[Result], *, only: Sequence[int] | None = None) -> Evaluation:
    """Evaluates results; their order does not matter.

    Args:
        dataset: holds the true objects.
        results: what was found in each image.
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
    ordered = sorted(results, key=lambda item: item[0])
    for index, detections in ordered:
        coco.update(image_ids[index], detections.best(COCO_DETECTIONS))
        boxes_xyxy, labels = dataset.targets(index)
        darknet.update(boxes_xyxy, labels, detections)
    return Evaluation(coco, darknet, ordered)
