"""Every backend gives the same boxes, from any number of threads; auto measures once and remembers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from detector.errors import InputError
from detector.inference import backends
from detector.inference.backends import fastest_backend, measure_backends, open_runtime
from detector.inference.predictor import Predictor
from detector.inference.weights import LoadedDetector, load_detector
from detector.runtime.protocol import BACKENDS
from detector.structures import Image

needs_bf16 = pytest.mark.skipif(not backends.computes_in_bf16(), reason="the processor does not compute in bfloat16")
ALL = [pytest.param(name, marks=needs_bf16 if name.endswith("bf16") else ()) for name in BACKENDS]


@pytest.fixture(scope="module")
def loaded(random_weights: Path) -> LoadedDetector:
    return load_detector(random_weights)


def random_image(seed: int) -> Image:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (int(rng.integers(60, 200)), int(rng.integers(60, 200)), 3), np.uint8)


@pytest.mark.parametrize("name", ALL)
def test_all_backends_find_the_same_from_eight_threads(loaded: LoadedDetector, name: str) -> None:
    images = [random_image(seed) for seed in range(24)]
    reference = Predictor.from_loaded(loaded)
    predictor = Predictor.from_loaded(loaded, backend=name)
    assert predictor.runtime.name == name
    alone = [predictor.predict(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(predictor.predict, images))
    for first, second in zip(alone, together, strict=True):
        assert np.array_equal(first.boxes_xyxy, second.boxes_xyxy)
        assert np.array_equal(first.scores, second.scores)
    if not name.endswith("bf16"):
        for image, found in zip(images, alone, strict=True):
            expected = reference.predict(image)
            assert len(found) == len(expected) > 5
            assert found.boxes_xyxy == pytest.approx(expected.boxes_xyxy, abs=0.1)
            assert found.scores == pytest.approx(expected.scores, abs=1e-3)


def test_a_backend_that_does_not_agree_is_refused(loaded: LoadedDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.runtime import onnxruntime_backend

    run = onnxruntime_backend.OnnxRuntime._run
    monkeypatch.setattr(
        onnxruntime_backend.OnnxRuntime, "_run", lambda self, images: [1.01 * output for output in run(self, images)]
    )
    with pytest.raises(InputError, match="--backend onnxruntime: refused, its raw maps differ from those of torch"):
        open_runtime(loaded, "onnxruntime")


def test_unknown_and_impossible_backends_are_refused(loaded: LoadedDetector) -> None:
    with pytest.raises(InputError, match=r"--backend tensorrt: cannot run .* possible are auto, torch, "):
        open_runtime(loaded, "tensorrt")
    with pytest.raises(InputError, match="runs on the CPU only"):
        open_runtime(loaded, "opencv", device="cuda:0")


def test_auto_takes_the_quickest_and_remembers_it(
    loaded: LoadedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.inference.backends.PROJECT_ROOT", tmp_path)
    calls = []

    def measured(_: object, names: list[str], **__: object) -> dict[str, float]:
        calls.append(names)
        return {"torch": 3.0, "openvino": 1.0, "opencv": 2.0}

    monkeypatch.setattr(backends, "measure_backends", measured)
    assert fastest_backend(loaded, BACKENDS) == "openvino"
    assert fastest_backend(loaded, BACKENDS) == "openvino"
    assert len(calls) == 1, "the second answer comes from the cache"
    assert fastest_backend(loaded, BACKENDS, threads=7) == "openvino"
    assert len(calls) == 2, "another number of threads is measured again"
    cache = tmp_path / "weights/.backends.json"
    assert set(json.loads(cache.read_text()).values()) == {"openvino"}
    cache.write_text("broken")
    assert fastest_backend(loaded, BACKENDS) == "openvino"
    monkeypatch.setattr(backends, "measure_backends", lambda *_, **__: {})
    with pytest.raises(InputError, match="none of a can run"):
        fastest_backend(loaded, ["a"])


def test_backends_are_measured_in_turns(loaded: LoadedDetector) -> None:
    table = measure_backends(loaded, ["torch", "no such backend"], rounds=2)
    assert list(table) == ["torch"]
    assert table["torch"] > 0
