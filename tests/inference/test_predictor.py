"""Predictor: one path, the file alone is enough, boxes in the caller's pixels."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detector.config import load_config
from detector.data.open import open_dataset
from detector.errors import InputError
from detector.inference.find import find_model
from detector.inference.predictor import Predictor

TINY = load_config(Path(__file__).resolve().parents[2] / "configs/tiny.yaml")


class OneBox(nn.Module):
    """Finds a square of 32 network pixels about the centre of cell (1, 1) at stride 32, whatever it sees."""

    strides = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> list[Tensor]:
        batch, _, height, width = images.shape
        maps = [torch.full((batch, 24, height // s, width // s), -20.0) for s in self.strides]
        coarse = maps[2].view(batch, 3, 8, height // 32, width // 32)
        width_px, height_px = TINY.model.anchors[7]
        coarse[:, 1, :4, 1, 1] = torch.tensor([0.0, 0.0, np.log(32 / width_px), np.log(32 / height_px)])
        coarse[:, 1, 4:, 1, 1] = torch.tensor([20.0, -20.0, 20.0, -20.0])
        return maps


def predictor(*, letterbox: bool = False) -> Predictor:
    from dataclasses import replace

    return Predictor.from_network(OneBox(), TINY.model, replace(TINY.preprocess, letterbox=letterbox))


@pytest.mark.parametrize(
    ("letterbox", "expected"),
    [
        (False, [64, 96, 128, 192]),  # 192 wide, 288 high; network box 32..64 of 96
        (True, [48, 96, 144, 192]),  # scale 1/3, 16 px of bars left and right
    ],
)
def test_boxes_come_back_in_the_pixels_of_the_image(letterbox: bool, expected: list[float]) -> None:
    image = np.zeros((288, 192, 3), np.uint8)
    found = predictor(letterbox=letterbox).predict(image)
    assert found.boxes_xyxy[0].tolist() == pytest.approx(expected, abs=0.01)
    assert found.labels.tolist() == [1]
    assert found.scores[0] > 0.99
    assert image.max() == 0


def test_a_batch_is_the_same_as_one_by_one(trained_run: Path) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (50 + seed, 70, 3), np.uint8) for seed in range(3)]
    network = Predictor(trained_run / "best.safetensors", score_threshold=0.0, max_detections=20)
    together, alone = network.predict_batch(images), [network.predict(image) for image in images]
    for first, second in zip(together, alone, strict=True):
        assert len(first) == 20
        assert first.boxes_xyxy == pytest.approx(second.boxes_xyxy, abs=0.01)
    assert network.predict_batch([]) == []


def test_the_file_alone_is_enough(trained_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "alone.safetensors"
    copy.write_bytes((trained_run / "best.safetensors").read_bytes())
    network = Predictor(copy)
    assert network.class_names == ("circle", "square", "triangle")
    sample = open_dataset(tiny_data / "val.json").read(0)
    assert network.predict(sample.image).boxes_xyxy.shape[1] == 4


@pytest.mark.parametrize("limit", [{"score_threshold": -0.1}, {"nms_threshold": float("nan")}, {"max_detections": 0}])
def test_an_invalid_limit_is_refused(random_weights: Path, limit: dict[str, float]) -> None:
    (name,) = limit
    with pytest.raises(InputError, match=f"{name}: expected "):
        Predictor(random_weights, **limit)  # type: ignore[arg-type]


def test_extreme_images_do_not_fail() -> None:
    for shape in ((1, 1, 3), (1, 2000, 3), (2000, 1, 3)):
        found = predictor(letterbox=True).predict(np.zeros(shape, np.uint8))
        assert np.isfinite(found.boxes_xyxy).all()


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), "a.jpg", None],
)
def test_an_invalid_image_is_refused(image: object) -> None:
    with pytest.raises(InputError, match="predict: expected"):
        predictor().predict(image)  # type: ignore[arg-type]


def test_find_model(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = trained_run / "best.safetensors"
    assert find_model(str(trained_run), None).path == best
    assert find_model(None, str(best)).path == best
    assert find_model(str(trained_run / "config.yaml"), None).path == best
    with pytest.raises(InputError, match="holds no weights yet"):
        find_model(str(tmp_path), None)
    monkeypatch.chdir(trained_run.parent.parent)
    (trained_run.parent.parent / "weights").unlink(missing_ok=True)
    (trained_run.parent.parent / "weights").symlink_to(trained_run.parent)
    assert find_model(None, None).path.resolve() == best.resolve()


def forked(predictor: Predictor, image: np.ndarray) -> Any:
    """What a fork of this process finds, or its error; a fork that hangs ends after a minute."""
    ours, theirs = multiprocessing.Pipe()

    def child() -> None:
        try:
            theirs.send(predictor.predict(image).scores)
        except InputError as error:
            theirs.send(str(error))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks with threads
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    assert ours.poll(60), "the fork hangs"
    process.join()
    return ours.recv()


def test_a_fork_predicts_as_its_parent_or_says_why_not(trained_run: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    network = Predictor(trained_run / "best.safetensors", score_threshold=0.0, max_detections=5)
    assert forked(network, image) == pytest.approx(network.predict(image).scores, rel=1e-5), "one thread, another order"
    other = Predictor(trained_run / "best.safetensors", backend="onnxruntime")
    other.predict(image)
    assert "forked after onnxruntime was opened" in forked(other, image)


def test_a_copy_in_another_process_opens_the_same_file(trained_run: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    network = Predictor(trained_run / "best.safetensors", score_threshold=0.0, max_detections=5)
    copy = pickle.loads(pickle.dumps(network))
    assert copy.predict(image).scores.tolist() == network.predict(image).scores.tolist()
    assert copy.thresholds == network.thresholds
    with pytest.raises(InputError, match=r"only one made as Predictor\(PATH\)"):
        pickle.dumps(predictor())


def test_a_batch_may_be_an_array_or_any_iterable() -> None:
    images = np.zeros((3, 40, 60, 3), np.uint8)
    expected = [found.boxes_xyxy.tolist() for found in predictor().predict_batch(list(images))]
    for batch in (images, iter(images), (image for image in images), tuple(images)):
        assert [found.boxes_xyxy.tolist() for found in predictor().predict_batch(batch)] == expected
    for wrong in (images[0], 3, None, "abc", [None]):
        with pytest.raises(InputError, match="predict"):
            predictor().predict_batch(wrong)  # type: ignore[arg-type]


def test_an_object_has_one_box_if_that_is_asked_for(trained_run: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    weights = trained_run / "best.safetensors"
    every = Predictor(weights, score_threshold=0.0).predict(image)
    one = Predictor(weights, score_threshold=0.0, multi_label=False).predict(image)
    boxes = [tuple(box) for box in every.boxes_xyxy.tolist()]
    assert len(set(boxes)) < len(boxes), "a place answers with several classes"
    assert len({tuple(box) for box in one.boxes_xyxy.tolist()}) == len(one)
    assert one.scores[0] == every.scores[0]
