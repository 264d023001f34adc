"""The report of a classifier's run: curves, weakest classes, confused classes, worst images."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.config import ClassifyConfig, to_yaml
from detector.data.image_folder import ClassifiedImages, centre_view
from detector.data.images import read_image
from detector.evaluate.classification import Answer, top_k_of
from detector.report.html import curves_section, heading, images_section, png, section, text_section, write_page
from detector.report.plots import MAX_NAMED_CLASSES, plot_confusion

NUM_WORST = 24
NUM_ROWS = 20
"""Rows in each of the two tables."""
IMAGE_SIZE = 160


def write_classification_report(
    path: Path,
    config: ClassifyConfig,
    train_set: ClassifiedImages,
    val_set: ClassifiedImages,
    answers: Sequence[Answer],
) -> None:
    """Writes the report.

    Args:
        path: the HTML file; metrics.jsonl is read from its folder.
        config: the run's config.
        train_set: only described.
        val_set: the images that were classified.
        answers: one for each image of `val_set`.

    Raises:
        InputError: an image cannot be read.
    """
    metrics = top_k_of(answers)
    sections = [
        heading(path.parent.name, {"top-1": metrics["top1"], "top-5": metrics["top5"]}),
        curves_section(path.parent / "metrics.jsonl", {"top-1": "top1", "top-5": "top5"}),
        _classes(val_set, answers),
        _worst(val_set, answers, config.input.size),
        text_section("Data", f"{train_set}\n{val_set}"),
        text_section("Config", to_yaml(config)),
    ]
    write_page(path, sections)


def _classes(dataset: ClassifiedImages, answers: Sequence[Answer]) -> str:
    """The weakest classes, the most frequent confusions, and the whole matrix if there is room."""
    names = dataset.class_names
    pairs = Counter((int(dataset.labels[answer.index]), answer.label) for answer in answers)  # (true, answered)
    counts = Counter(dataset.labels.tolist())
    shares = {label: pairs[label, label] / count for label, count in counts.items()}
    lowest = sorted(shares, key=lambda label: (shares[label], label))[:NUM_ROWS]
    weakest = "\n".join(f"{shares[label]:7.1%} of {counts[label]:>6}  {names[label]}" for label in lowest)
    wrong = Counter({pair: count for pair, count in pairs.items() if pair[0] != pair[1]})
    mixed_up = "\n".join(
        f"{count:>6}  {names[truth]} classified as {names[answer]}"
        for (truth, answer), count in wrong.most_common(NUM_ROWS)
    )
    page = text_section("Classes with the lowest accuracy", weakest) + text_section(
        "Most frequent confusions", mixed_up or "none"
    )
    if len(names) > MAX_NAMED_CLASSES:
        return page
    matrix = np.zeros((len(names), len(names)), np.int64)
    for pair, count in pairs.items():
        matrix[pair] = count
    plot = png(lambda file: plot_confusion(file, matrix, names, title="Confusion"))
    return page + section("Confusion matrix", f"<div class=row>{plot}</div>")


def _worst(dataset: ClassifiedImages, answers: Sequence[Answer], size: int) -> str:
    wrong = [answer for answer in answers if answer.label != dataset.labels[answer.index]]
    images = []
    for answer in heapq.nlargest(NUM_WORST, wrong, key=lambda answer: (answer.loss, answer.index)):
        path = dataset.paths[answer.index]
        caption = (
            f"{path.parent.name}/{path.name}: classified as {dataset.class_names[answer.label]} with "
            f"{answer.probability:.2f}; the true class has probability {math.exp(-answer.loss):.2g}"
        )
        images.append((centre_view(read_image(path), min(size, IMAGE_SIZE)), caption))
    return images_section(
        "Worst answers", images, text="Wrong answers, the least probable true class first. Some labels may be wrong."
    )
