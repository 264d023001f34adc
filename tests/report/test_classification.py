"""The report of a classifier's run, on known answers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.config import ClassifyConfig, load_run_config
from detector.data.image_folder import ClassifiedImages
from detector.evaluate.classification import Answer, _answers
from detector.report.classification import NUM_WORST, write_classification_report
from detector.structures import Floats

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> ClassifyConfig:
    config = load_run_config(ROOT / "configs/classify_tiny.yaml")
    assert isinstance(config, ClassifyConfig)
    return config


def many_images(folder: Path, class_names: tuple[str, ...], count: int) -> ClassifiedImages:
    """`count` images of each class; they share one file."""
    path = folder / "a<b.png"
    cv2.imwrite(str(path), np.full((20, 30, 3), 90, np.uint8))
    labels = np.repeat(np.arange(len(class_names)), count)
    return ClassifiedImages("some", class_names, (path,) * len(labels), labels)


def certain(answers: np.ndarray, num_classes: int) -> Floats:
    return 9 * np.eye(num_classes, dtype=np.float32)[answers]


def as_answers(logits: Floats, dataset: ClassifiedImages) -> list[Answer]:
    return _answers(range(len(logits)), logits, dataset.labels)


def test_what_a_report_shows_first(tmp_path: Path, config: ClassifyConfig) -> None:
    dataset = many_images(tmp_path, ("circle", "square", "stripes"), 10)
    logits = np.zeros((30, 3), np.float32)
    logits[np.arange(30), dataset.labels] = 5  # all correct except two
    logits[12] = (9, 0, 0)  # a square
    logits[21] = (0, 1, 0.5)  # stripes
    answers = as_answers(logits, dataset)
    assert [(answer.index, answer.label, answer.rank) for answer in answers if answer.rank] == [(12, 0, 2), (21, 1, 1)]
    assert answers[12].loss == pytest.approx(9, abs=1e-3)
    write_classification_report(tmp_path / "report.html", config, dataset, dataset, answers)
    page = (tmp_path / "report.html").read_text()
    assert "<div class=big>0.933</div>top-1" in page
    assert "1  square classified as circle" in page
    assert "Confusion matrix" in page
    assert "classified as circle with 1.00; the true class has probability 0.00012" in page


def test_names_cannot_become_markup(tmp_path: Path, config: ClassifyConfig) -> None:
    dataset = many_images(tmp_path, ("<script>", "b"), 2)
    logits = certain(1 - dataset.labels, 2)
    write_classification_report(tmp_path / "report.html", config, dataset, dataset, as_answers(logits, dataset))
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a&lt;b.png" in page


def test_a_run_without_a_mistake_and_without_a_record(tmp_path: Path, config: ClassifyConfig) -> None:
    dataset = many_images(tmp_path, ("a", "b"), 3)
    logits = certain(dataset.labels, 2)
    write_classification_report(tmp_path / "report.html", config, dataset, dataset, as_answers(logits, dataset))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 0
    assert "<div class=big>1.000</div>top-1" in page
    assert "Most frequent confusions</h2><pre>none</pre>" in page


def test_the_weakest_of_many_classes_are_listed(tmp_path: Path, config: ClassifyConfig) -> None:
    names = tuple(f"class{number:02d}" for number in range(30))
    dataset = many_images(tmp_path, names, 2)
    wrong = dataset.labels.copy()
    wrong[:40] += 1  # the first twenty classes
    write_classification_report(
        tmp_path / "report.html", config, dataset, dataset, as_answers(certain(wrong, len(names)), dataset)
    )
    page = (tmp_path / "report.html").read_text()
    assert "Confusion matrix" not in page, "a matrix of this many classes cannot be read"
    assert page.count("<figure>") == NUM_WORST
    assert "0.0% of      2  class19" in page
    assert "class20\n" not in page, "at most twenty lines"
    assert "2  class00 classified as class01" in page
