"""The files of a full evaluation: precision-recall plot, confusion matrix, worst images, submission files."""

from __future__ import annotations

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from detector.data.dataset import DetectionDataset
from detector.data.images import write_image
from detector.evaluate.coco import CocoEvaluator
from detector.evaluate.confusion import SHOWN_SCORE, Mistakes, count_mistakes
from detector.evaluate.detection import Evaluation
from detector.render import draw, tile
from detector.structures import Detections, Image, Sample

NUM_WORST = 20
BACKGROUND = "background"
CONFUSION_TITLE = f"Confusion, score above {SHOWN_SCORE}, IoU 0.5"


def write_plots(evaluation: Evaluation, dataset: DetectionDataset, out_dir: Path) -> list[str]:
    """Writes worst.jpg into `out_dir` and, where matplotlib is installed, precision_recall.png and confusion.png.

    worst.jpg shows the 20 images with the most mistakes at score 0.25: labels on the left, detections on the right.

    Returns:
        The names of the files.

    Raises:
        InputError: an image can no longer be read.
    """
    mistakes = count_mistakes(dataset, evaluation.results)
    out_dir.mkdir(parents=True, exist_ok=True)
    images = [image for image, _ in worst_images(evaluation, mistakes, dataset, NUM_WORST)]
    write_image(out_dir / "worst.jpg", tile(images, columns=4, cell_hw=(240, 640)))
    if find_spec("matplotlib") is None:
        return ["worst.jpg"]

    from detector.report.plots import plot_confusion, plot_precision_recall

    plot_precision_recall(out_dir / "precision_recall.png", *evaluation.coco.precision_recall(), dataset.class_names)
    names = [*dataset.class_names, BACKGROUND]
    plot_confusion(out_dir / "confusion.png", mistakes.confusion, names, title=CONFUSION_TITLE)
    return ["precision_recall.png", "confusion.png", "worst.jpg"]


def worst_images(
    evaluation: Evaluation, mistakes: Mistakes, dataset: DetectionDataset, count: int
) -> list[tuple[Image, str]]:
    """The images with the most mistakes, labels beside detections, with captions. Raises: InputError."""
    found = dict(evaluation.results)
    worst = []
    for number, index in mistakes.worst[:count]:
        sample = dataset.read(index)
        image = side_by_side(sample, found[index].above(SHOWN_SCORE), dataset.class_names)
        worst.append((image, f"{sample.image_id}: {number} mistakes"))
    return worst


def write_submission(evaluator: CocoEvaluator, out_dir: Path, *, name: str, subset: str = "test-dev2017") -> Path:
    """Writes the file that COCO's evaluation server accepts: detections_<subset>_<name>_results.json, zipped.

    Returns:
        The path of the zip.
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
    """Labels on the left, detections on the right."""
    truth = Detections(sample.boxes_xyxy, np.ones(len(sample.labels), np.float32), sample.labels)
    left = draw(sample.image, truth, class_names, scores=False)
    right = draw(sample.image, detections, class_names)
    return tile([left, right], columns=2, cell_hw=sample.image.shape[:2], gap=2)
