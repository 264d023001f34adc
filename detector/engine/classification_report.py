"""The page of a classifier's run: curves, classes, what is taken for what, worst images.

Legend: B images, K classes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from detector.config import ClassifyConfig, to_yaml
from detector.data.image_folder import ClassifiedImages, centre_view
from detector.data.images import read_image
from detector.engine.page import (
    curves_section,
    heading,
    pictures_section,
    png,
    section,
    text_section,
    write_page,
)
from detector.metrics.plots import MAX_NAMED_CLASSES, plot_confusion
from detector.metrics.top_k import ClassAnswers, ranks_of_truth, top_k
from detector.structures import Floats

NUM_WORST = 24
NUM_ROWS = 20
"""Lines of the two tables."""
PICTURE_SIZE = 160


def write_classification_report(
    path: Path,
    config: ClassifyConfig,
    train_set: ClassifiedImages,
    val_set: ClassifiedImages,
    results: Iterable[ClassAnswers],
) -> None:
    """Writes the report.

    Args:
        path: of the HTML; metrics.jsonl is read beside it.
        config: of the run.
        train_set: for its size.
        val_set: that was classified.
        results: of all images of `val_set`.

    Raises:
        InputError: a picture cannot be read.
    """
    answers = Answers(val_set)
    for indices, logits in results:
        answers.take(indices, logits)
    metrics = top_k(answers.ranks)
    data = "\n".join(
        f"{each.name}: {len(each)} images, {len(each.class_names)} classes" for each in (train_set, val_set)
    )
    sections = [
        heading(path.parent.name, {"top-1": metrics["top1"], "top-5": metrics["top5"]}),
        curves_section(path.parent / "metrics.jsonl", {"top-1": "top1", "top-5": "top5"}),
        _classes(answers),
        _worst(answers, config.input.size),
        text_section("Data", data),
        text_section("Config", to_yaml(config)),
    ]
    write_page(path, sections)


class Answers:
    """Counts what was taken for what, and keeps the images that were answered worst.

    Attributes:
        ranks: for each image how many classes come before the true one.
        confusions: how often, by (true class, class that was answered).
        worst: (loss, index of the image, class that was answered, its probability); wrong answers only.
    """

    def __init__(self, dataset: ClassifiedImages) -> None:
        self.dataset = dataset
        self.ranks: list[int] = []
        self.confusions: Counter[tuple[int, int]] = Counter()
        self.worst: list[tuple[float, int, int, float]] = []

    def take(self, indices: Sequence[int], logits: Floats) -> None:
        """B images with their logits (B, K)."""
        truth = self.dataset.labels[list(indices)]
        ranks = ranks_of_truth(logits, truth)
        self.ranks += ranks.tolist()
        shifted = logits - logits.max(axis=1, keepdims=True)
        logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        for row, (index, label) in enumerate(zip(indices, truth, strict=True)):
            answer = int(logarithms[row].argmax())
            self.confusions[int(label), answer] += 1
            if answer != label:
                probability = float(np.exp(logarithms[row, answer]))
                self.worst.append((-float(logarithms[row, label]), index, answer, probability))
        self.worst = heapq.nlargest(NUM_WORST, self.worst)


def _classes(answers: Answers) -> str:
    names = answers.dataset.class_names
    counts = Counter(answers.dataset.labels.tolist())
    shares = {label: answers.confusions[label, label] / count for label, count in counts.items()}
    lowest = sorted(shares, key=lambda label: (shares[label], label))[:NUM_ROWS]
    weakest = "\n".join(f"{shares[label]:7.1%} of {counts[label]:>6}  {names[label]}" for label in lowest)
    wrong = Counter({pair: count for pair, count in answers.confusions.items() if pair[0] != pair[1]})
    mixed_up = "\n".join(
        f"{count:>6}  {names[truth]} taken for {names[answer]}"
        for (truth, answer), count in wrong.most_common(NUM_ROWS)
    )
    page = text_section("Classes that are right least often", weakest) + text_section(
        "Most frequent confusions", mixed_up or "none"
    )
    if len(names) > MAX_NAMED_CLASSES:
        return page
    matrix = np.zeros((len(names), len(names)), np.int64)
    for pair, count in answers.confusions.items():
        matrix[pair] = count
    plot = png(lambda file: plot_confusion(file, matrix, names, title="Confusion"))
    return page + section("What is taken for what", f"<div class=row>{plot}</div>")


def _worst(answers: Answers, size: int) -> str:
    dataset = answers.dataset
    pictures = []
    for loss, index, answer, probability in answers.worst:
        path, names = dataset.paths[index], dataset.class_names
        caption = (
            f"{path.parent.name}/{path.name}: taken for {names[answer]} with {probability:.2f}; "
            f"its own class has {np.exp(-loss):.2g}"
        )
        pictures.append((centre_view(read_image(path), min(size, PICTURE_SIZE)), caption))
    return pictures_section(
        "Images that were answered worst",
        pictures,
        text="Wrong answers, the least probable truth first; label suspects.",
    )
