"""Classifiers: trained end to end on drawn shapes, resumed, measured, and used to start a detector."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.checkpoint import find_weights, load_checkpoint
from detector.config import ClassifyConfig, load_config, load_run_config
from detector.errors import InputError
from detector.evaluate.classification import evaluate_checkpoint
from detector.inference.build import build_network
from detector.inference.find import find_classifier
from detector.inference.weights import load_detector
from detector.train.classification import smooth
from detector.train.finetune import load_initial_weights
from detector.train.loop import train

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/classify_tiny.yaml"
NETWORK = "model.backbone.name=darknet_reference"


def draw_folders(root: Path, counts: dict[str, int]) -> None:
    """Draws circles, squares and stripes in random colours, one folder for each class."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("circle", "square", "stripes"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                image = np.full((72, 90, 3), rng.integers(0, 100, 3), np.uint8)
                colour = rng.integers(150, 256, 3).tolist()
                x, y, radius = (int(value) for value in rng.integers((30, 26, 14), (60, 46, 24)))
                if kind == "circle":
                    cv2.circle(image, (x, y), radius, colour, -1)
                elif kind == "square":
                    cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), colour, -1)
                else:
                    for row in range(0, 72, 12):
                        cv2.line(image, (0, row), (90, row), colour, 4)
                cv2.imwrite(str(folder / f"{number}.png"), image)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    draw_folders(root, {"train": 40, "val": 10})
    return root


def tiny_classifier(root: Path, *overrides: str) -> ClassifyConfig:
    config = load_run_config(CONFIG, [f"data.root={root}", NETWORK, *overrides])
    assert isinstance(config, ClassifyConfig)
    return config


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("run") / "classifier"
    return run_dir, train(tiny_classifier(shapes, "train.max_steps=150", "evaluate.every=0", f"run_dir={run_dir}"))


def test_it_learns_to_tell_shapes_apart(trained: tuple[Path, dict[str, Any]]) -> None:
    run_dir, metrics = trained
    assert metrics["top1"] > 0.8
    assert metrics["top5"] == 1.0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/cross_entropy"] for line in lines if "loss/cross_entropy" in line]
    assert losses[0] == pytest.approx(np.log(3), abs=0.5), "three classes, nothing learnt yet"
    assert losses[-1] < 0.6 * losses[0]


def test_the_report_shows_the_run(trained: tuple[Path, dict[str, Any]]) -> None:
    run_dir, metrics = trained
    page = (run_dir / "report.html").read_text()
    assert f"<div class=big>{metrics['top1']:.3f}</div>top-1" in page
    assert "Loss terms" in page
    assert page.count("<svg") == 3
    assert "Confusion matrix" in page
    assert "of     10  circle" in page
    wrong = round(30 * (1 - metrics["top1"]))
    assert page.count("<figure>") == wrong, "each wrong answer is shown"
    assert not re.search(r"(src|href)='?https?:", page)


def test_the_stored_classifier_measures_the_same(trained: tuple[Path, dict[str, Any]], shapes: Path) -> None:
    run_dir, metrics = trained
    checkpoint = find_classifier(str(run_dir), None)
    assert checkpoint is not None
    measured = evaluate_checkpoint(checkpoint, root=None, split=None, progress=False)
    assert measured == {"top1": metrics["top1"], "top5": 1.0, "images": 30}
    assert evaluate_checkpoint(checkpoint, root=str(shapes), split="train", progress=False)["images"] == 120


def test_a_detector_starts_from_its_backbone(trained: tuple[Path, dict[str, Any]]) -> None:
    weights = trained[0] / "best.safetensors"
    model = ["model.backbone.name=darknet_tiny", "model.neck.name=yolov3_tiny"]
    anchors = ["model.anchors=[[10, 14], [20, 20], [40, 40], [60, 60], [80, 80], [90, 90]]"]
    network = build_network(load_config(ROOT / "configs/tiny.yaml", [*model, *anchors]).model)
    report = load_initial_weights(network, weights)
    assert all(name.startswith("backbone.") for name in report.loaded)
    assert all(name.startswith(("neck.", "head.")) for name in report.fresh)
    stored = load_checkpoint(weights).weights()["backbone.convs.0.conv.weight"]
    assert torch.equal(network.state_dict()["backbone.convs.0.conv.weight"], stored)


def test_it_is_not_accepted_as_a_detector(trained: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="holds a classifier, not a detector"):
        load_detector(trained[0] / "best.safetensors")
    with pytest.raises(InputError, match="holds no weights yet"):
        find_classifier(str(ROOT / "configs/tiny.yaml"), None)
    folders = [trained[0].parent]
    assert find_weights(folders, detectors_only=False) == trained[0] / "best.safetensors"
    with pytest.raises(InputError, match="no weights found"):
        find_weights(folders)


def test_resuming_gives_the_same_bytes_with_any_number_of_workers(shapes: Path, tmp_path: Path) -> None:
    def run(name: str, steps: int, *overrides: str, resume: bool = False) -> None:
        mixed = ["augment.cutmix=0.3", "augment.mosaic=0.3", "loss.label_smoothing=0.1", "train.save_every=4"]
        settings = [*mixed, "train.batch_size=8", "evaluate.every=0", f"run_dir={tmp_path / name}", *overrides]
        config = tiny_classifier(shapes, "train.max_steps=8", "train.burn_in=0", *settings)
        if steps < 8:
            config = tiny_classifier(
                shapes, f"train.max_steps={steps}", "train.burn_in=0", "train.policy.name=steps", *settings
            )
        train(config, resume=resume)

    run("whole", 8, "train.policy.name=steps")
    run("parts", 4)
    run("parts", 8, "train.policy.name=steps", "train.num_workers=2", resume=True)
    whole, parts = (load_checkpoint(tmp_path / name / "last.safetensors").tensors for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_classes_other_than_the_trained_ones_are_refused(
    trained: tuple[Path, dict[str, Any]], shapes: Path, tmp_path: Path
) -> None:
    run_dir, _ = trained
    assert load_checkpoint(run_dir / "best.safetensors").info["class_names"] == ["circle", "square", "stripes"]
    draw_folders(tmp_path, {"train": 1, "val": 1})
    for split in ("train", "val"):
        (tmp_path / split / "circle").rename(tmp_path / split / "zebra")  # now comes last
    with pytest.raises(InputError, match="only one of them has circle, zebra"):
        evaluate_checkpoint(
            load_checkpoint(run_dir / "best.safetensors"), root=str(tmp_path), split=None, progress=False
        )
    config = tiny_classifier(tmp_path, "train.max_steps=200", f"run_dir={run_dir}")
    with pytest.raises(InputError, match="was trained with different class names than the data have now"):
        train(config, resume=True)


def test_label_smoothing_by_hand() -> None:
    targets = torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.allclose(smooth(targets, 0.1), torch.tensor([[0.05, 0.9, 0.05]]))
    assert smooth(targets, 0.0) is targets
    assert smooth(torch.tensor([[0.5, 0.5, 0.0]]), 0.1).sum() == pytest.approx(1.0)


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    draw_folders(tmp_path, {"train": 1, "val": 1})
    (tmp_path / "val/circle").rename(tmp_path / "val/disc")
    with pytest.raises(InputError, match="only one of them has circle, disc"):
        train(tiny_classifier(tmp_path, f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_a_value_that_is_not_finite_names_images_and_keeps_the_batch(shapes: Path, tmp_path: Path) -> None:
    config = tiny_classifier(shapes, "train.learning_rate=1e30", "train.burn_in=0", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(InputError, match="first value that is not finite"):
        train(config)
    folder = next((tmp_path / "run").glob("nonfinite_step_*"))
    record = json.loads((folder / "batch.json").read_text())
    assert len(record["image_ids"]) == len(list(folder.glob("*.png"))) == 16
