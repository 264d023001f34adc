"""Label suspects from hand-made boxes; the report as a browser shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from detector.config import DetectConfig, load_config
from detector.data.dataset import DetectionDataset
from detector.evaluate.detection import evaluate
from detector.inference.predictor import Predictor
from detector.report.detection import write_run_report
from detector.report.label_audit import audit_labels, list_of, pictures
from detector.structures import Detections
from detector.train.detection import open_split

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


class _Predicts(Predictor):
    """Finds the objects that its data set had before a label was damaged."""

    def __init__(self, answers: dict[int | str, Detections]) -> None:
        self.answers = iter(answers.values())

    def predict(self, image: np.ndarray) -> Detections:
        return next(self.answers)


def truth_as_answers(dataset: DetectionDataset) -> dict[int | str, Detections]:
    """What a network that knows every object would answer."""
    answers = {}
    for index in range(len(dataset)):
        boxes, labels = dataset.targets(index)
        zeros = np.zeros(len(labels), np.int64)
        answers[dataset.image_ids[index]] = Detections(
            boxes, np.full(len(labels), 0.9, np.float32), labels, None, zeros
        )
    return answers


def test_damaged_labels_are_the_first_suspects(tiny: Callable[..., DetectConfig]) -> None:
    """One label is removed, one moved, one renamed: nothing else is a suspect."""
    dataset = open_split(tiny(), "train")
    answers = truth_as_answers(dataset)
    boxes, labels = dataset.boxes_xyxy.copy(), dataset.labels.copy()
    moved, renamed, removed = dataset.offsets[0], dataset.offsets[1], dataset.offsets[2]
    boxes[moved] = [0, 0, 3, 3]
    labels[renamed] = (labels[renamed] + 1) % 3
    keep = np.arange(len(labels)) != removed
    offsets = dataset.offsets - (dataset.offsets > removed)
    damaged = replace(dataset, boxes_xyxy=boxes[keep], labels=labels[keep], crowd=dataset.crowd[keep], offsets=offsets)
    audit = audit_labels(_Predicts(answers), damaged)
    names = dataset.class_names
    found = {(each.kind, each.index, each.label, each.network) for each in audit.suspects}
    assert found == {
        ("place", 0, names[labels[moved]], ""),
        ("missing", 0, "", names[dataset.labels[moved]]),
        ("class", 1, names[labels[renamed]], names[dataset.labels[renamed]]),
        ("missing", 2, "", names[dataset.labels[removed]]),
    }
    assert all(each.surprise > 2 for each in audit.suspects)
    assert audit.answers == {0: len(dataset.labels) - 2}, "of any class, at the place of a label"
    lines = list_of(audit.suspects, damaged).splitlines()
    assert lines[0] == "rank,image,kind,label,network,x1,y1,x2,y2,surprise"
    assert len(lines) == 5
    assert str(dataset.paths[0]) in lines[1] + lines[2] + lines[3] + lines[4]
    assert all(each.shape[2] == 3 for each in pictures(damaged, audit.suspects))


def test_a_perfect_network_suspects_nothing(tiny: Callable[..., DetectConfig]) -> None:
    dataset = open_split(tiny(), "val")
    assert audit_labels(_Predicts(truth_as_answers(dataset)), dataset).suspects == []
    nothing = {image_id: found([], [], []) for image_id in dataset.image_ids}
    audit = audit_labels(_Predicts(nothing), dataset)
    assert len(audit.suspects) == len(dataset.labels), "a blind network suspects every label, none more than another"
    assert len({each.surprise for each in audit.suspects if each.label == "circle"}) == 1


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
    for part in ("Curves", "Per class", "most mistakes", "anchors and scales", "disagree most", "the list"):
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
