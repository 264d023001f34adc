"""One HTML file that shows a whole run; it needs no other file and no network."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from detector import __version__
from detector.checkpoint import write_atomically
from detector.config import ExperimentConfig, to_yaml
from detector.data.dataset import DetectionDataset, summarize
from detector.engine.evaluate import Evaluation, evaluate
from detector.engine.insight import Insight, Suspect, look_at_labels
from detector.engine.report import side_by_side
from detector.metrics.confusion import ConfusionMatrix
from detector.metrics.plots import plot_bars, plot_confusion, plot_curves, plot_precision_recall
from detector.metrics.table import metrics_table
from detector.postprocess import Decoder
from detector.predict import Predictor
from detector.structures import Detections, Image, Sample

NUM_WORST = 8
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 13px; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.row svg, .plot { max-width: 100%; width: 570px; height: auto; }
figure { margin: 0; } figcaption { font-size: 12px; color: #57606a; max-width: 170px; overflow-wrap: anywhere; }
.wide figcaption { max-width: 570px; } .wide img { width: 570px; max-width: 100%; }
.big { font-size: 2rem; font-weight: 600; } .tile { background: #f6f8fa; padding: .6rem 1.2rem; border-radius: 6px; }
"""


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
    sections = [
        _heading(path.parent.name, metrics),
        _curves(path.parent / "metrics.jsonl"),
        _classes(val_set, metrics, evaluation, mistakes.confusion),
        _worst(mistakes, val_set.class_names),
        _anchors(predictor.decoder, insight),
        _label_suspects(insight),
        _section("Data", f"<pre>{html.escape(_data_lines(train_set, val_set))}</pre>"),
        _section("Config", f"<pre>{html.escape(to_yaml(config))}</pre>"),
    ]
    title = html.escape(f"{path.parent.name} - detector {__version__}")
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><body>"
        f"{''.join(sections)}</body></html>\n"
    )
    write_atomically(path, page.encode())


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


def _heading(name: str, metrics: dict[str, Any]) -> str:
    tiles = ""
    for key, title in (("ap50", "AP50"), ("ap", "AP (0.50:0.95)"), ("ap75", "AP75"), ("ar100", "AR100")):
        number = "-" if metrics[key] is None else f"{metrics[key]:.3f}"
        tiles += f"<div class=tile><div class=big>{number}</div>{title}</div>"
    return f"<h1>{html.escape(name)}</h1><div class=row>{tiles}</div>"


def _curves(record: Path) -> str:
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.is_file() else []

    def curve(key: str) -> tuple[list[float], list[float]]:
        rows = [line for line in lines if line.get(key) is not None]
        return [row["step"] for row in rows], [row[key] for row in rows]

    losses = {name: curve(f"loss/{name}") for name in ("box", "objectness", "classification", "total")}
    precision = {"AP50": curve("val/ap50"), "AP": curve("val/ap")}
    rate = {"learning rate": curve("learning_rate")}
    plots = (
        _svg(lambda file: plot_curves(file, losses, title="Loss terms", log=True))
        + _svg(lambda file: plot_curves(file, precision, title="Average precision on the validation split"))
        + _svg(lambda file: plot_curves(file, rate, title="Learning rate"))
    )
    return _section("Curves", f"<div class=row>{plots}</div>")


def _classes(
    dataset: DetectionDataset, metrics: dict[str, Any], evaluation: Evaluation, confusion: ConfusionMatrix
) -> str:
    names = dataset.class_names
    plots = _plot(lambda file: plot_precision_recall(file, *evaluation.coco.precision_recall(), names)) + _plot(
        lambda file: plot_confusion(file, confusion.counts, names)
    )
    table = f"<pre>{html.escape(metrics_table(metrics))}</pre>"
    return _section(f"Per class ({dataset.name}, {len(dataset)} images)", f"{table}<div class=row>{plots}</div>")


def _worst(mistakes: Mistakes, class_names: tuple[str, ...]) -> str:
    pictures = "".join(
        _figure(side_by_side(sample, shown, class_names), f"{sample.image_id}: {count} mistakes")
        for count, _, sample, shown in mistakes.worst
    )
    return _section(
        "Images with the most mistakes (left labels, right detections above 0.25)",
        f"<div class='row wide'>{pictures}</div>",
    )


def _anchors(decoder: Decoder, insight: Insight) -> str:
    """Which anchors and scales found the objects of the training images."""
    scales = [anchors_wh.tolist() for anchors_wh in decoder.anchors_wh]
    anchors = [f"{width:g}x{height:g}" for scale in scales for width, height in scale]
    counts = [insight.answers.get(number, 0) for number in range(len(anchors))]
    plot = _svg(
        lambda file: plot_bars(
            file, anchors, {"objects found": counts}, title="Which anchor found them", ylabel="objects"
        )
    )
    text = f"{sum(counts)} objects of {insight.num_images} training images were found."
    ends = list(itertools.accumulate(len(scale) for scale in scales))
    for stride, scale, end in zip(decoder.strides, scales, ends, strict=True):
        text += f" At stride {stride}: {sum(counts[end - len(scale) : end])}."
    return _section("Which anchors and scales answered", f"<p>{text}</p><div class=row>{plot}</div>")


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
    pictures = "".join(
        _figure(each.picture, f"{each.image_id}: {each.class_name} {each.value:.2f}") for each in suspects
    )
    return _section(title, f"<p>{html.escape(text)}</p><div class=row>{pictures or 'none'}</div>")


def _data_lines(*datasets: DetectionDataset) -> str:
    return "\n".join(
        f"{dataset.name}: {len(dataset)} images, {len(dataset.labels)} objects, {summarize(dataset.problems)}"
        for dataset in datasets
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{content}"


def _figure(image: Image, caption: str) -> str:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    data = base64.b64encode(encoded.tobytes()).decode()
    text = html.escape(caption)
    return f"<figure><img src='data:image/jpeg;base64,{data}' alt='{text}'><figcaption>{text}</figcaption></figure>"


def _plot(draw_into: Callable[[BinaryIO], None]) -> str:
    file = io.BytesIO()
    draw_into(file)
    return f"<img class=plot alt='' src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'>"


def _svg(draw_into: Callable[[BinaryIO], None]) -> str:
    file = io.BytesIO()
    draw_into(file)
    text = file.getvalue().decode()
    return text[text.index("<svg") :]
