"""The page of a detector's run: curves, classes, worst images, anchors, label suspects."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.config import ExperimentConfig, to_yaml
from detector.data.dataset import DetectionDataset, summarize
from detector.engine.evaluate import Evaluation, evaluate
from detector.engine.insight import Insight, Suspect, look_at_labels
from detector.engine.page import (
    curves_section,
    heading,
    pictures_section,
    png,
    section,
    svg,
    text_section,
    write_page,
)
from detector.engine.report import BACKGROUND, CONFUSION_TITLE, side_by_side
from detector.metrics.confusion import ConfusionMatrix
from detector.metrics.plots import plot_bars, plot_confusion, plot_precision_recall
from detector.metrics.table import metrics_table
from detector.postprocess import Decoder
from detector.predict import Predictor
from detector.structures import Detections, Sample

NUM_WORST = 8


def write_run_report(
    path: Path,
    config: ExperimentConfig,
    predictor: Predictor,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    *,
    progress: bool = False,
) -> None:
    """Evaluates on `val_set`, looks at the labels of `train_set` and writes the report.

    Args:
        path: of the HTML; metrics.jsonl is read beside it.
        config: of the run.
        predictor: with the thresholds of the evaluation.
        train_set: whose labels are looked at.
        val_set: that is measured.
        progress: show bars on stderr.

    Raises:
        InputError: a picture cannot be read.
    """
    mistakes = Mistakes(len(val_set.class_names))
    evaluation = evaluate(
        predictor,
        val_set,
        coco_detections=config.evaluate.max_detections,
        progress=progress,
        on_image=mistakes.look,
    )
    metrics = evaluation.compute()
    insight = look_at_labels(predictor, train_set, progress=progress)
    shown = {"AP50": "ap50", "AP (0.50:0.95)": "ap", "AP75": "ap75", "AR100": "ar100"}
    sections = [
        heading(path.parent.name, {title: metrics[key] for title, key in shown.items()}),
        curves_section(path.parent / "metrics.jsonl", {"AP50": "ap50", "AP": "ap"}),
        _classes(val_set, metrics, evaluation, mistakes.confusion),
        _worst(mistakes, val_set.class_names),
        _anchors(predictor.decoder, insight),
        _label_suspects(insight),
        text_section("Data", _data_lines(train_set, val_set)),
        text_section("Config", to_yaml(config)),
    ]
    write_page(path, sections)


class Mistakes:
    """Counts the confusions of an evaluation and keeps the images with the most mistakes."""

    def __init__(self, num_classes: int) -> None:
        self.confusion = ConfusionMatrix(num_classes)
        self.worst: list[tuple[int, int, Sample, Detections]] = []
        """Mistakes, position in the data set, image, what was found; the most mistakes first."""
        self._num_images = 0

    def look(self, sample: Sample, detections: Detections) -> None:
        """Takes one image with all that was found in it."""
        shown = detections.above(0.25)
        real = ~sample.crowd
        mistakes = self.confusion.update(sample.boxes_xyxy[real], sample.labels[real], shown)
        self.worst.append((mistakes, self._num_images, sample, shown))
        self.worst.sort(key=lambda item: (-item[0], item[1]))
        del self.worst[NUM_WORST:]
        self._num_images += 1


def _classes(
    dataset: DetectionDataset, metrics: dict[str, Any], evaluation: Evaluation, confusion: ConfusionMatrix
) -> str:
    names = dataset.class_names
    plots = png(lambda file: plot_precision_recall(file, *evaluation.coco.precision_recall(), names)) + png(
        lambda file: plot_confusion(file, confusion.counts, [*names, BACKGROUND], title=CONFUSION_TITLE)
    )
    table = f"<pre>{html.escape(metrics_table(metrics))}</pre>"
    return section(f"Per class ({dataset.name}, {len(dataset)} images)", f"{table}<div class=row>{plots}</div>")


def _worst(mistakes: Mistakes, class_names: tuple[str, ...]) -> str:
    pictures = [
        (side_by_side(sample, shown, class_names), f"{sample.image_id}: {count} mistakes")
        for count, _, sample, shown in mistakes.worst
    ]
    return pictures_section(
        "Images with the most mistakes (left labels, right detections above 0.25)", pictures, wide=True
    )


def _anchors(decoder: Decoder, insight: Insight) -> str:
    """Which anchors and scales found the objects of the training images."""
    scales = [anchors_wh.tolist() for anchors_wh in decoder.anchors_wh]
    anchors = [f"{width:g}x{height:g}" for scale in scales for width, height in scale]
    counts = [insight.answers.get(number, 0) for number in range(len(anchors))]
    plot = svg(
        lambda file: plot_bars(
            file, anchors, {"objects found": counts}, title="Which anchor found them", ylabel="objects"
        )
    )
    text = f"{sum(counts)} objects of {insight.num_images} training images were found."
    ends = list(itertools.accumulate(len(scale) for scale in scales))
    for stride, scale, end in zip(decoder.strides, scales, ends, strict=True):
        text += f" At stride {stride}: {sum(counts[end - len(scale) : end])}."
    return section("Which anchors and scales answered", f"<p>{text}</p><div class=row>{plot}</div>")


def _label_suspects(insight: Insight) -> str:
    return _suspects(
        "Label suspects: objects whose loss stays high",
        f"Of the {insight.num_images} training images that were looked at ({insight.num_unreadable} unreadable). "
        "Labels are white, the suspect coloured; the number is minus the logarithm of the score with which its own "
        "class covers it (4.6 = not found), from 1.4, a score of 0.25, on.",
        insight.hard,
    ) + _suspects(
        "Label suspects: detections that look like missing labels",
        "Score above 0.5, and no label overlaps by 0.3. The number is the score.",
        insight.missing,
    )


def _suspects(title: str, text: str, suspects: Sequence[Suspect]) -> str:
    pictures = [(each.picture, f"{each.image_id}: {each.class_name} {each.value:.2f}") for each in suspects]
    return pictures_section(title, pictures, text=text)


def _data_lines(*datasets: DetectionDataset) -> str:
    return "\n".join(
        f"{dataset.name}: {len(dataset)} images, {len(dataset.labels)} objects, {summarize(dataset.problems)}"
        for dataset in datasets
    )
