"""Label suspects from hand-made boxes; the report as a browser shows it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from detector.config import DetectConfig, load_config
from detector.evaluate.detection import evaluate
from detector.inference.predictor import Predictor
from detector.report.detection import write_run_report
from detector.report.label_audit import audit_labels, object_losses, unlabelled
from detector.structures import Detections, Sample
from detector.train.detection import open_split

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def sample(boxes: list[list[float]], labels: list[int]) -> Sample:
    return Sample(
        np.zeros((100, 100, 3), np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.zeros(len(labels), np.bool_),
        "image",
    )


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


def test_the_loss_of_an_object_is_that_of_the_best_box_of_its_class() -> None:
    truth = sample([[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]], [0, 1, 0])
    detections = found([[50, 50, 60, 60], [0, 0, 10, 9], [0, 0, 10, 10]], [0.9, 0.5, 0.25], [0, 0, 0])
    assert object_losses(truth, detections) == pytest.approx([-math.log(0.5), -math.log(0.01), -math.log(0.01)])
    assert object_losses(truth, found([], [], [])) == pytest.approx([-math.log(0.01)] * 3)
    assert object_losses(sample([], []), detections).shape == (0,)


def test_confident_boxes_on_no_label_are_suspects() -> None:
    truth = sample([[0, 0, 10, 10]], [0])
    detections = found([[50, 50, 60, 60], [0, 0, 10, 10], [70, 70, 80, 80]], [0.9, 0.8, 0.4], [0, 1, 0])
    assert unlabelled(truth, detections) == [0], "the second lies on a label of another class, the third is unsure"
    assert unlabelled(sample([], []), detections) == [0, 1]
    assert unlabelled(truth, found([], [], [])) == []


class _Predicts(Predictor):
    """Finds the objects that its data set had before a label was damaged."""

    def __init__(self, answers: dict[int | str, Detections]) -> None:
        self.answers = iter(answers.values())

    def predict(self, image: np.ndarray) -> Detections:
        return next(self.answers)


def test_a_removed_and_a_moved_label_are_found(tiny: Callable[..., DetectConfig]) -> None:
    dataset = open_split(tiny(), "val")
    answers = {}
    for index in range(len(dataset)):
        objects = dataset.objects(index)
        count = len(dataset.labels[objects])
        anchors = np.zeros(count, np.int64)
        scores = np.full(count, 0.9, np.float32)
        answers[dataset.image_ids[index]] = Detections(
            dataset.boxes_xyxy[objects], scores, dataset.labels[objects], anchors=anchors
        )
    damaged = dataset.boxes_xyxy.copy()
    damaged[0] = [0, 0, 3, 3]
    audit = audit_labels(_Predicts(answers), replace(dataset, boxes_xyxy=damaged))
    assert audit.hard[0].image_id == audit.missing[0].image_id == dataset.image_ids[0]
    assert audit.hard[0].value == pytest.approx(-math.log(0.01))
    assert len(audit.hard) == 1, "an object that is found is not a suspect"
    assert len(audit.missing) == 1
    assert audit.answers == {0: len(dataset.labels) - 1}


class _Resources(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.headings: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name == "src"]
        self.sources += [value or "" for name, value in attributes if name == "href" and tag in {"link", "a"}]
        self._in_heading = tag in {"h1", "h2"}

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


@pytest.fixture(scope="session")
def report(trained_run: Path) -> Path:
    return trained_run / "report.html"


def test_the_report_loads_no_other_file(report: Path) -> None:
    page = _Resources()
    page.feed(report.read_text(encoding="utf-8"))
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    for part in ("Curves", "Per class", "most mistakes", "anchors and scales", "loss stays high", "missing labels"):
        assert any(part in heading for heading in page.headings), part


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_a_browser_shows_the_report(report: Path, tmp_path: Path) -> None:
    image = tmp_path / "report.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,3000", f"--screenshot={image}"]
    dump = subprocess.run(
        [str(CHROMIUM), *options[:5], f"--user-data-dir={tmp_path / 'second'}", "--dump-dom", report.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "Label suspects" in dump.stdout
    subprocess.run([str(CHROMIUM), *options, report.as_uri()], capture_output=True, check=True, timeout=120)
    import cv2

    pixels = cv2.imread(str(image))
    assert pixels is not None
    assert pixels.shape[:2] == (3000, 1300)
    assert pixels[200:2500].std() > 20, "an empty page"


def test_a_hostile_name_stays_text(tiny: Callable[..., DetectConfig], trained_run: Path, tmp_path: Path) -> None:
    config = load_config(trained_run / "config.yaml")
    predictor = Predictor(trained_run / "last.safetensors", score_threshold=0.0001)
    dataset = open_split(config, "val")
    hostile = replace(dataset, image_ids=["<script>alert(1)</script>"] * len(dataset))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss/total": 1.0}) + "\n")
    write_run_report(tmp_path / "report.html", config, predictor, hostile, hostile, evaluate(predictor, hostile))
    assert "<script" not in (tmp_path / "report.html").read_text(encoding="utf-8")
