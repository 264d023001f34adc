"""Which part may import which (one direction only), and which parts may import each third-party library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "detector"

# The parts of detector/ from top to bottom: a part imports only parts below it.
IMPORT_ORDER = (
    "paper",
    "benchmark",
    "train",
    "export",
    "report",
    "serve",
    "video",
    "web",
    "tracking",
    "evaluate",
    "inference",
    "analysis",
    "runtime",
    "zoo",
    "darknet",
    "data",
    "models",
    "checkpoint",
    "config",
    "loss",
    "assign",
    "anchors",
    "postprocess",
    "preprocess",
    "render",
    "boxes",
    "overlaps",
    "structures",
    "cli",
    "files",
    "extras",
    "errors",
)
THIRD_PARTY = {
    "timm": {"models"},
    "av": {"data", "video"},
    "paho": {"video"},
    "ray": {"inference"},
    "starlette": {"serve", "video", "web"},
    "uvicorn": {"serve", "video"},
    "prometheus_client": {"serve", "video"},
    "trackers": {"tracking"},
    "supervision": {"tracking"},
    "yaml": {"config"},
    "pydantic": {"config"},
    "pycocotools": {"evaluate"},
    "matplotlib": {"report"},
    "safetensors": {"checkpoint"},
    "albumentations": {"data"},
    "tensorboard": {"train"},
    "PIL": {"data", "render"},
    "msgspec": {"data"},
    "torchvision": {"data"},
    "onnx": {"export", "runtime"},
    "onnxruntime": {"export", "runtime"},
    "openvino": {"analysis", "export", "runtime"},
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
    below = IMPORT_ORDER[IMPORT_ORDER.index(part) + 1 :]
    assert ours - {part} <= set(below), f"{part} may import {', '.join(below)}"
    for package, allowed in THIRD_PARTY.items():
        if any(package in name.split(".") for name in imports(path)):
            assert part in allowed, f"{package} may be imported in {allowed} only"


def test_every_part_is_in_the_import_order() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} == set(IMPORT_ORDER)


def test_packages_only_reexport_names() -> None:
    for path in PACKAGE.rglob("*/__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}, f"{path} defines something"


def test_a_predictor_needs_no_training_library() -> None:
    for module in ("albumentations", "scipy", "msgspec", "pycocotools", "matplotlib", "tensorboard"):
        code = f"import sys; sys.modules[{module!r}] = None; from detector import Predictor"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_who_uses_the_network() -> None:
    """Downloads; and what a user asks for: serving, --web, --events, --ray."""
    users = {path.name for path in FILES if imports(path) & {"urllib.request", "http.client", "requests", "socket"}}
    assert users == {"access.py", "cluster.py", "download.py", "events.py"}


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
    modules = ("inference.build", "inference.find", "postprocess", "analysis.complexity", "darknet.weights")
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


def test_a_script_beside_a_clone_named_detector_imports_the_package(tmp_path: Path) -> None:
    (tmp_path / "detector" / "tools").mkdir(parents=True)  # the clone, whose root is not a package
    (tmp_path / "mine.py").write_text("import detector; print(detector.__version__)")
    result = subprocess.run(
        [sys.executable, str(tmp_path / "mine.py")], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
