"""A full evaluation on disk: metrics, precision-recall plot, confusion matrix, worst images, submission files."""

from __future__ import annotations

import heapq
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector.data.dataset import DetectionDataset
from detector.engine.evaluate import COCO_DETECTIONS, evaluate
from detector.metrics.coco import CocoEvaluator
from detector.metrics.confusion import ConfusionMatrix
from detector.metrics.plots import plot_confusion, plot_precision_recall
from detector.predict import Predictor
from detector.render import draw, tile
from detector.structures import Detections, Image, Sample

NUM_WORST = 20
BACKGROUND = "background"
CONFUSION_TITLE = "Confusion, score above 0.25, IoU 0.5"


def evaluate_with_plots(
    predictor: Predictor,
    dataset: DetectionDataset,
    out_dir: Path,
    *,
    coco_detections: int = COCO_DETECTIONS,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates and writes precision_recall.png, confusion.png and worst.jpg into `out_dir`.

    worst.jpg shows the 20 images with the most mistakes at score 0.25, left the labels, right the detections.

    Returns:
        the metrics (see `Evaluation.compute`).
    """
    confusion = ConfusionMatrix(len(dataset.class_names))
    worst: list[tuple[int, int, Image]] = []
    count = 0

    def look(sample: Sample, detections: Detections) -> None:
        nonlocal count
        count += 1
        shown = detections.above(0.25)
        real = ~sample.crowd
        mistakes = confusion.update(sample.boxes_xyxy[real], sample.labels[real], shown)
        if mistakes and (len(worst) < NUM_WORST or mistakes > worst[0][0]):
            push = heapq.heappush if len(worst) < NUM_WORST else heapq.heapreplace
            push(worst, (mistakes, -count, side_by_side(sample, shown, dataset.class_names)))

    evaluation = evaluate(predictor, dataset, coco_detections=coco_detections, progress=progress, on_image=look)
    out_dir.mkdir(parents=True, exist_ok=True)
    plot_precision_recall(out_dir / "precision_recall.png", *evaluation.coco.precision_recall(), dataset.class_names)
    names = [*dataset.class_names, BACKGROUND]
    plot_confusion(out_dir / "confusion.png", confusion.counts, names, title=CONFUSION_TITLE)
    pictures = [picture for _, _, picture in sorted(worst, key=lambda item: item[:2], reverse=True)]
    cv2.imwrite(str(out_dir / "worst.jpg"), tile(pictures, columns=4, cell_hw=(240, 640))[..., ::-1])
    return evaluation.compute()


def write_submission(evaluator: CocoEvaluator, out_dir: Path, *, name: str, subset: str = "test-dev2017") -> Path:
    """Writes the file that COCO's evaluation server takes: detections_<subset>_<name>_results.json, zipped.

    Returns:
        the zip.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    stem = f"detections_{subset}_{name}_results"
    rows = [
        {**row, "bbox": [round(value, 2) for value in row["bbox"]], "score": round(row["score"], 5)}
        for row in evaluator.results()
    ]
    target = out_dir / f"{stem}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{stem}.json", json.dumps(rows))
    return target


def side_by_side(sample: Sample, detections: Detections, class_names: tuple[str, ...]) -> Image:
    """Left the labels, right the detections."""
    truth = Detections(sample.boxes_xyxy, np.ones(len(sample.labels), np.float32), sample.labels)
    left = draw(sample.image, truth, class_names, scores=False)
    right = draw(sample.image, detections, class_names)
    return tile([left, right], columns=2, cell_hw=sample.image.shape[:2], gap=2)
