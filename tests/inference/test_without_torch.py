"""An exported file runs without PyTorch: in a fresh environment with the core packages of pyproject.toml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from detector import Predictor
from detector.export.gate import export
from detector.export.gate_data import gather_gate_data
from detector.export.request import Request
from detector.inference.weights import load_detector

ROOT = Path(__file__).resolve().parents[2]
PREDICT = """
import json, sys
import cv2
from detector import Predictor

image = cv2.cvtColor(cv2.imread(sys.argv[2]), cv2.COLOR_BGR2RGB)
found = Predictor(sys.argv[1], score_threshold=0.001).predict(image)
print(json.dumps({"boxes": found.boxes_xyxy.tolist(), "scores": found.scores.tolist(), "modules": list(sys.modules)}))
"""


def core_distributions() -> set[str]:
    """The core packages and what they need themselves."""
    waiting: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(requirement.name)
            waiting += distribution(requirement.name).requires or []
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has nothing but the core packages, as links to those installed here."""
    root = tmp_path_factory.mktemp("small")
    venv.create(root, symlinks=True)
    (site,) = root.glob("lib/python3*/site-packages")
    for name in core_distributions():
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files if file.parts[0] not in {"..", "__pycache__"}}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return root / "bin" / "python"


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    loaded = load_detector(trained_run / "best.safetensors")
    export(loaded, Request("onnx", path), gather_gate_data(loaded))
    return path


def call(python: Path, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([python, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_the_environment_has_no_torch(small: Path) -> None:
    found = call(
        small, "-c", "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('onnxruntime').name)"
    )
    assert found.stdout.split() == ["None", "onnxruntime"], found.stderr


def test_a_predictor_finds_the_same_boxes(small: Path, exported: Path, tiny_data: Path) -> None:
    image = next((tiny_data / "images").iterdir())
    answer = call(small, "-c", PREDICT, exported, image)
    assert answer.returncode == 0, answer.stderr
    given = json.loads(answer.stdout)
    here = Predictor(exported, score_threshold=0.001).predict(cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB))
    assert len(here) > 0
    np.testing.assert_array_equal(np.array(given["boxes"], np.float32), here.boxes_xyxy)
    np.testing.assert_array_equal(np.array(given["scores"], np.float32), here.scores)
    assert not {"torch", "matplotlib", "onnx", "pycocotools"} & set(given["modules"]), "needs no time for these"


def test_demo_predict_and_eval_run(small: Path, exported: Path, tiny_data: Path, tmp_path: Path) -> None:
    images = tiny_data / "images"
    first, val = next(images.iterdir()), ("--data", tiny_data / "val.json")
    for name, arguments in {
        "demo": (exported, "--image", first, "--save", tmp_path / "seen.jpg"),
        "predict": (images, "--model", exported, "--out", tmp_path / "results.json"),
        "eval": (exported, *val, "--out", tmp_path / "eval", "--json", tmp_path / "eval.json"),
    }.items():
        answer = call(small, f"tools/{name}.py", *arguments)
        assert answer.returncode == 0, answer.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"seen.jpg", "results.json", "eval", "eval.json"}
    assert (tmp_path / "eval" / "worst.jpg").is_file()
    here = call(Path(sys.executable), "tools/eval.py", exported, *val, "--out", tmp_path, "--json")
    assert json.loads(here.stdout) == json.loads((tmp_path / "eval.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("tools/demo.py", "weights/csppelee_efm_bccd.safetensors", "--image", "x.jpg"),
            "torch; run: pip install",
        ),
        (("tools/eval.py", "weights/csppelee_efm_bccd.safetensors", "--data", "x"), "torch; run: pip install"),
        (("tools/demo.py", "--image", "x.jpg"), "torch; run: pip install"),
        (("tools/demo.py", "tests/none.xml", "--image", "x.jpg"), "no such file"),
        (("tools/train.py", "configs/tiny.yaml"), "package is missing"),
        (("tools/serve.py", "tests/none.xml"), "run: pip install starlette uvicorn prometheus-client python-multipart"),
    ],
)
def test_what_needs_more_says_so_in_one_line(small: Path, arguments: tuple[str, ...], expected: str) -> None:
    answer = call(small, *arguments)
    assert answer.returncode == 2
    assert expected in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_video_needs_one_more_package(small: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a video")
    answer = call(small, "tools/demo.py", exported, "--video", tmp_path / "a.mp4", "--json")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "reading a video needs av; run: pip install av" in answer.stderr


def test_names_in_any_script_are_drawn_without_matplotlib(small: Path) -> None:
    code = (
        "import numpy as np; from detector.render import draw; from detector.structures import Detections\n"
        "boxes = np.array([[20, 30, 60, 60]], np.float32)\n"
        "found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64))\n"
        "print(draw(np.zeros((80, 160, 3), np.uint8), found, ['k\u00f6pek']).max())\n"
    )
    answer = call(small, "-c", code)
    assert answer.stdout.strip() != "0", answer.stderr
    assert answer.returncode == 0, answer.stderr


def test_the_list_of_public_models_needs_no_torch(small: Path) -> None:
    assert "yolov4-tiny" in call(small, "tools/download.py", "--list").stdout
