"""Who may import whom (DESIGN: one direction), and one door for each third party."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "detector"

# A part may import those that stand before it in its row.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "structures": set(),
    "boxes": set(),
    "cli": {"errors"},
    "render": {"structures", "boxes"},
    "metrics": {"structures", "boxes"},
    "anchors": {"boxes"},
    "models": {"config", "errors"},
    "checkpoint": {"config", "errors"},
    "data": {"config", "structures", "boxes", "anchors", "errors"},
    "assign": {"anchors", "boxes", "structures"},
    "postprocess": {"anchors", "structures"},
    "loss": {"assign", "anchors", "boxes", "structures"},
    "darknet": {"anchors", "checkpoint", "config", "errors", "models"},
    "build": {"anchors", "config", "darknet", "errors", "models", "postprocess"},
    "analysis": {"models", "config", "darknet", "errors"},
    "runtime": {"anchors", "config", "errors", "models", "postprocess", "structures"},
    "load": {"build", "checkpoint", "config", "darknet", "errors", "postprocess", "runtime"},
    "backends": {"checkpoint", "errors", "load", "runtime"},
    "predict": {"backends", "build", "config", "data", "errors", "load", "postprocess", "runtime", "structures"},
    "export": {
        "analysis",
        "backends",
        "boxes",
        "checkpoint",
        "config",
        "darknet",
        "errors",
        "load",
        "models",
        "postprocess",
        "predict",
        "runtime",
        "structures",
    },
    "tiles": {"errors", "predict", "structures"},
    "many": {"data", "errors", "structures"},
    "video": {"data", "errors", "predict", "render", "structures"},
    "convert": {"checkpoint", "config", "darknet", "errors", "load", "models"},
    # Evaluation predicts by the same path as everybody else, so engine stands above predict (CONTRIBUTING.md).
    "engine": {
        "boxes",
        "analysis",
        "backends",
        "build",
        "checkpoint",
        "config",
        "darknet",
        "data",
        "errors",
        "export",
        "load",
        "loss",
        "metrics",
        "models",
        "postprocess",
        "predict",
        "render",
        "runtime",
        "structures",
    },
}
DOORS = {
    "yaml": {"config"},
    "pydantic": {"config"},
    "pycocotools": {"metrics"},
    "matplotlib": {"metrics"},
    "safetensors": {"checkpoint"},
    "albumentations": {"data"},
    "tensorboard": {"engine"},
    "PIL": {"data"},
    "msgspec": {"data"},
    "torchvision": {"data"},
    "onnx": {"export", "runtime"},
    "onnxruntime": {"export", "runtime"},
    "openvino": {"export", "runtime"},
    "nncf": {"export"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of all imported modules."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("detector.")}
    assert ours - {part} <= ALLOWED[part]
    for package, doors in DOORS.items():
        if any(package in name.split(".") for name in imports(path)):
            assert part in doors, f"{package} comes in by {doors} only"


def test_the_network_is_used_in_one_place() -> None:
    users = [path.name for path in FILES if imports(path) & {"urllib.request", "http.client", "requests", "socket"}]
    assert users == ["download.py"]


def test_nothing_can_run_code_from_a_file() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec"}, path
        assert not imports(path) & {"pickle", "dill", "joblib"}, path


@pytest.mark.parametrize("module", ["cv2", "torch", "matplotlib"])
def test_importing_detector_needs_no_display_library(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; import detector; print(detector.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_models_are_built_and_converted_without_opencv() -> None:
    modules = ("build", "convert", "load", "postprocess", "analysis.complexity", "darknet.weights", "export.layers")
    imported = "; ".join(f"import detector.{module}" for module in modules)
    code = f"import sys; sys.modules['cv2'] = None; {imported}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_public_names() -> None:
    import detector

    for name in detector.__all__:
        assert getattr(detector, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        detector.nothing  # noqa: B018
