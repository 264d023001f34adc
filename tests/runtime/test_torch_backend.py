"""PyTorch's runtime: devices by name, and the part of the raw maps that a GPU returns."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.errors import InputError
from detector.inference.find import find_trainable
from detector.inference.predictor import Predictor
from detector.postprocess import Thresholds, find_places, objectness_limit, postprocess
from detector.runtime.device import find_device
from detector.runtime.torch_backend import TorchRuntime

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("score_threshold", [0.0, 0.01, 0.25, 1.0])
def test_places_chosen_on_the_device_are_those_chosen_here(random_weights: Path, score_threshold: float) -> None:
    loaded = find_trainable(str(random_weights), None, None)
    runtime, decoder = TorchRuntime(loaded.network), loaded.decoder
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    expected = find_places(runtime.run(images), decoder, score_threshold)
    anchors = [len(each) for each in decoder.anchors_wh]
    found = runtime.run_above(images, anchors, objectness_limit(decoder, score_threshold))
    assert found.batch == expected.batch == 3
    assert np.array_equal(found.where, expected.where)
    assert np.array_equal(found.codes, expected.codes)
    for one, other in zip(
        postprocess(expected, decoder, Thresholds(score_threshold)),
        postprocess(runtime.run(images), decoder, Thresholds(score_threshold)),
        strict=True,
    ):
        assert np.array_equal(one.boxes_xyxy, other.boxes_xyxy)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    pretend_gpus(monkeypatch, 2)
    assert find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"--device cuda:2: the GPUs here are cuda:0, cuda:1"):
        find_device("cuda:2")
    for name in ("gpu", "cuda:", "cuda:-1", "cuda:x", "mps", "CPU", ""):
        with pytest.raises(InputError, match="expected cpu, cuda or cuda:N"):
            find_device(name)
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(InputError, match="no GPU, this PyTorch"):
        find_device("cuda")


@pytest.mark.parametrize("backend", [None, "auto", "torch", "torch-bf16"])
def test_a_gpu_that_is_missing_is_never_replaced(
    random_weights: Path, monkeypatch: pytest.MonkeyPatch, backend: str | None
) -> None:
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(InputError, match="--device cuda: no GPU"):
        Predictor(random_weights, backend=backend, device="cuda")


@pytest.mark.parametrize("tool", ["eval", "demo", "predict", "export", "benchmark"])
def test_every_tool_that_runs_a_detector_has_the_option(
    tool: str, random_weights: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, 0)
    weights, picture = str(random_weights), str(ROOT / "demo.jpg")
    words = {
        "eval": [weights, "--data", str(tiny_data), "--split", "val"],
        "demo": [weights, "--image", picture, "--json"],
        "predict": [picture, "--weights", weights, "--out", str(tmp_path / "out.json")],
        "export": [weights, "--to", "onnx", "--out", str(tmp_path / "out.onnx")],
        "benchmark": [weights],
    }[tool]
    with pytest.raises(InputError, match="--device cuda:7: no GPU"):
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"]([*words, "--device", "cuda:7"])
