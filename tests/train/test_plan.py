"""What a config leaves to the data is decided once, completely, and said."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from toy_cfg import TOY_CFG

from detector.config import ProgressiveConfig, load_config, load_run_config
from detector.config.load import leaves_to_data, read_tree
from detector.darknet import load_darknet
from detector.darknet.adapt import for_classes
from detector.errors import InputError
from detector.inference.weights import load_detector
from detector.train import plan as plan_module
from detector.train.loop import InterruptedRunError
from detector.train.plan import _measure as measure
from detector.train.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / "configs/detector.yaml"


@pytest.fixture(autouse=True)
def a_fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.train.plan._measure", lambda config, dataset: (0.5, 0.02))


def labelme(
    folder: Path, count: int, *, size_wh: tuple[int, int] = (128, 96), classes: tuple[str, ...] = ("cat", "dog")
) -> Path:
    """Images with one object each, of the classes in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, (size_wh[1], size_wh[0], 3), np.uint8))
        x, y = rng.integers(0, 60, 2).tolist()
        points = [[x, y], [x + 20 + number % 7, y + 30]]
        shapes = [{"label": classes[number % len(classes)], "shape_type": "rectangle", "points": points}]
        (folder / f"{number}.json").write_text(json.dumps({"shapes": shapes, "imagePath": f"{number}.png"}))
    return folder


def plan(data: Path, *overrides: str, minutes: float | None = 10) -> Any:
    return make_plan(read_tree(DETECTOR), DETECTOR, data, overrides, minutes=minutes)


def test_everything_is_decided_and_said(tmp_path: Path) -> None:
    made = plan(labelme(tmp_path / "pets", 30))
    config = made.config
    assert config.model.class_names == ("cat", "dog")
    assert (config.data.train, config.data.val) == ("all[:80%]", "all[80%:]")
    assert config.preprocess.size_hw == (96, 128)
    assert len(config.model.anchors) == 9
    assert config.run_dir == "weights/pets"
    assert config.train.max_steps == pytest.approx((600 - 8 - 0.02 * (4 * 6 + 24)) / 0.5, abs=20)
    assert config.evaluate.every == -(-config.train.max_steps // 4)
    text = "\n".join(made.lines)
    for words in ("LabelMe JSON, one split", "holds out 20 % of 'all'", "size 128x96", "recall", "32.0 images/s"):
        assert words in text


def test_growing_sizes_are_timed_over_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step costs what its pixels cost: 1 s at 416x416, 0.2 s at 192x192, and between them in proportion."""
    seconds = {(416, 416): (1.0, 0.02), (192, 192): (0.2, 0.01)}
    monkeypatch.setattr(plan_module, "_measure_at", lambda size_hw, config, dataset: seconds[size_hw])
    config = load_config(
        ROOT / "configs/csppelee_efm.yaml", ["preprocess.size_hw=[416,416]", "augment.multi_scale=null"]
    )
    assert measure(config, None) == (1.0, 0.02)
    growing = replace(config.augment, progressive=ProgressiveConfig(start=0.46, until=0.5))
    step, image = measure(replace(config, augment=growing), None)
    assert image == 0.02
    # Half of the steps cost 1 s; the others 0.2 s plus 0.8 s times the mean of (s^2 - 192^2) / (416^2 - 192^2), 0.44.
    assert step == pytest.approx(0.5 + 0.5 * (0.2 + 0.8 * 0.44), abs=0.02)


def test_named_splits_stay(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("valid", 3), ("test", 2)):
        labelme(tmp_path / split, count)
    config = plan(tmp_path).config
    assert (config.data.train, config.data.val) == ("train", "val")


def test_a_test_split_is_never_used_for_training(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 5)):
        labelme(tmp_path / split, count)
    config = plan(tmp_path).config
    assert (config.data.train, config.data.val) == ("train[:80%]", "train[80%:]")


def test_unusual_data_get_a_warning(tmp_path: Path) -> None:
    labelme(tmp_path / "train", 3, classes=tuple("abcdefg"))
    labelme(tmp_path / "val", 7, classes=tuple("abcdefg"))
    text = "\n".join(plan(tmp_path).lines)
    assert "warning: d, e, f, g: no object in train" in text
    assert "warning: 7 classes, but 3 training images" in text


def test_a_config_of_ones_own_keeps_what_it_states(tmp_path: Path) -> None:
    path = ROOT / "configs/csppelee_efm.yaml"
    data = labelme(tmp_path / "pets", 12, classes=("dingo", "wombat"))
    made = make_plan(read_tree(path), path, data)
    assert made.config.model.class_names == ("dingo", "wombat"), "COCO's classes do not cover the data's"
    assert made.config.train.max_steps == 500_000
    assert made.config.preprocess.size_hw == (416, 416)


def test_stated_steps_decide_the_rest_of_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.train.plan._measure", lambda config, dataset: pytest.fail("nothing to measure"))
    train = plan(labelme(tmp_path / "pets", 12), "train.max_steps=40", minutes=None).config.train
    assert (train.max_steps, train.burn_in, train.ema_decay) == (40, 4, 0.9)
    with pytest.raises(InputError, match=r"--minutes and train.max_steps both say how long"):
        plan(tmp_path / "pets", "train.max_steps=40", minutes=10)


def test_anchors_are_fitted_to_a_stated_size(tmp_path: Path) -> None:
    data = labelme(tmp_path / "pets", 30)
    normal, doubled = plan(data).config, plan(data, "preprocess.size_hw=[192,256]").config
    assert doubled.preprocess.size_hw == (192, 256)
    expected = 2 * np.array(normal.model.anchors)
    np.testing.assert_allclose(doubled.model.anchors, expected, atol=1.01)  # each is rounded to whole pixels


def test_a_wrong_value_is_said_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"preprocess.size_hw.0: .* multiple of 32, got 100"):
        plan(tmp_path / "absent", "preprocess.size_hw=[100,128]")


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    path = ROOT / "configs/classify_tiny.yaml"
    with pytest.raises(InputError, match="--data is for detectors, and this config trains a classifier"):
        make_plan(read_tree(path), path, labelme(tmp_path / "pets", 3))


@pytest.mark.parametrize("minutes", [0.05, 0.1])
def test_too_little_time_is_said(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(InputError, match=r"too short for this data; give at least \d"):
        plan(labelme(tmp_path / "pets", 10), minutes=minutes)


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.png"}))
    with pytest.raises(InputError, match="no "):
        plan(tmp_path)


def test_without_data_the_config_says_what_it_needs() -> None:
    assert "model.anchors" in leaves_to_data(read_tree(DETECTOR))
    with pytest.raises(InputError, match=r"leaves model.class_names, .* to the data; add --data PATH"):
        load_run_config(DETECTOR)


def test_the_command_trains_evaluates_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = labelme(tmp_path / "my pets", 20, size_wh=(64, 64))
    tool = runpy.run_path(str(ROOT / "tools/train.py"))["main"]
    assert tool(["--data", str(data), "--minutes", "1", "train.num_workers=0", "--plan"]) == 0
    assert not (tmp_path / "weights").exists()
    monkeypatch.setattr("detector.train.plan._measure", lambda config, dataset: (2.2, 0.02))
    assert tool(["--data", str(data), "--minutes", "1", "train.num_workers=0", "train.precision=fp32"]) == 0
    out = capsys.readouterr().out
    run = tmp_path / "weights/my pets"
    assert "next: python tools/demo.py 'weights/my pets' --video cam0" in out
    assert {path.name for path in run.iterdir()} >= {
        "best.safetensors",
        "config.yaml",
        "predictions.jpg",
        "report.html",
    }
    resolved = load_run_config(run / "config.yaml")
    assert resolved.train.max_steps == 23
    assert tool(["--data", str(data), "--resume"]) == 0, "the run's own config is used"


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = labelme(tmp_path / "pets.v1i.coco", 12, size_wh=(64, 64))  # named as downloads are
    tool = runpy.run_path(str(ROOT / "tools/train.py"))["main"]
    short = ["train.max_steps=2", "train.num_workers=0", "train.precision=fp32"]

    def stop(*_: object, **__: object) -> None:
        raise InterruptedRunError("stopped after step 1; continue with --resume")

    with monkeypatch.context() as patch:
        patch.setattr("detector.train.loop.train", stop)
        assert tool(["--data", str(data), *short]) == 130
    command = "python tools/train.py weights/pets.v1i.coco/config.yaml --resume"
    assert command in capsys.readouterr().err
    assert tool(["--data", str(data), *short]) == 0
    before = (tmp_path / "weights/pets.v1i.coco/config.yaml").read_bytes()
    assert tool(["--data", str(data), "--resume"]) == 0, "the run's own config is found"
    assert (tmp_path / "weights/pets.v1i.coco/config.yaml").read_bytes() == before


def test_a_darknet_model_is_trained_for_the_classes_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, cfg = labelme(tmp_path / "pets", 12, size_wh=(64, 64)), tmp_path / "public.cfg"
    cfg.write_text(TOY_CFG)
    load_darknet(cfg).save_weights(tmp_path / "public.weights")
    tool = runpy.run_path(str(ROOT / "tools/train.py"))["main"]
    short = ["train.max_steps=2", "train.num_workers=0", "train.precision=fp32"]
    assert tool([str(cfg), "--data", str(data), "--weights", str(cfg.with_suffix(".weights")), *short]) == 0
    said = capsys.readouterr().err
    assert "anchors as the cfg states" in said
    assert "6 of 8 loaded; other shapes (such as (255,) for (21,)): layers.1.conv.bias, layers.1.conv.weight" in said
    trained = load_detector(tmp_path / "weights/pets/best.safetensors")
    assert trained.class_names == ("cat", "dog")
    assert cfg.read_text() == TOY_CFG, "the user's file stays"


def test_a_cfg_that_is_no_detector_is_refused() -> None:
    with pytest.raises(InputError, match=r"x\.cfg: has no \[yolo\] section"):
        for_classes(TOY_CFG.partition("[yolo]")[0], 2, "x.cfg")
