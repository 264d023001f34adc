"""Finds and opens what a user means by a model: our weights, an exported file, a Darknet cfg, a run, a config."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from detector.checkpoint import Checkpoint, find_weights, load_checkpoint
from detector.config import (
    ClassifierConfig,
    DetectConfig,
    PreprocessConfig,
    load_run_config,
    parse_config_text,
)
from detector.errors import InputError
from detector.extras import require
from detector.postprocess import Decoder
from detector.runtime.formats import FORMATS, format_of, is_export
from detector.runtime.record import ExportRecord
from detector.zoo.table import cfg_of, weights_of

if TYPE_CHECKING:
    from detector.inference.weights import LoadedDetector

_RUNS_CODE = {".torchscript", ".pt", ".pth", ".pkl"}
PROJECT_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Loaded:
    """An opened detector, with everything needed to use it.

    Attributes:
        path: the file that the weights came from.
        class_names: in the order of the class indices.
        preprocess: how images become its input.
        decoder: how to read its raw maps.
        info: what else the file says: step, metrics, config text; empty for Darknet files.
    """

    path: Path
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    decoder: Decoder
    info: dict[str, Any]

    @cached_property
    def config(self) -> DetectConfig | None:
        """The experiment that trained it; None where the file does not say. Raises: InputError: it cannot be read."""
        text = self.info.get("config")
        config = parse_config_text(text, str(self.path)) if text else None
        assert config is None or isinstance(config, DetectConfig), "classifiers are refused earlier"
        return config


@dataclass(frozen=True)
class LoadedExport(Loaded):
    """A file written by tools/export.py. Attributes: record: what the file says about itself."""

    record: ExportRecord


def load_export(path: Path) -> LoadedExport:
    """Opens an exported file with the record inside it. Raises: InputError: missing, damaged, or without one."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    record = ExportRecord.from_json(_record_text(path), str(path))
    return LoadedExport(path, record.class_names, record.preprocess, record.decoder, record.info, record)


def _record_text(path: Path) -> str:
    name = format_of(path)
    if name == "onnx":
        from detector.runtime import onnxruntime_backend

        return onnxruntime_backend.record_text(path)
    require("openvino", f"{path}: this format")
    from detector.runtime import openvino_backend

    return openvino_backend.record_text(openvino_backend.read_model(path))


def load_any(model: str | Path, weights: str | Path | None = None) -> Loaded:
    """`load_detector` or `load_export`, by the suffix; or a public model by its name. Raises: InputError."""
    if weights is not None:
        return _load_weights(model, weights)
    model = cfg_of(str(model))
    if Path(model).suffix in _RUNS_CODE:
        raise InputError(
            f"{model}: is not opened, since such a file can run any code; give .safetensors, .onnx, .xml or .cfg"
        )
    if is_export(model):
        return load_export(Path(model))
    return _load_weights(model)


def _load_weights(model: str | Path, weights: str | Path | None = None, names: str | None = None) -> LoadedDetector:
    """`load_detector`, which needs PyTorch. Raises: InputError."""
    require("torch", f"{model}: running weights, unlike an exported file,")
    from detector.inference.weights import load_detector

    return load_detector(model, weights, names=names)


def find_model(model: str | None, weights: str | None, names: str | None = None) -> Loaded:
    """The detector that a user means.

    Args:
        model: a weights file, an exported file, a Darknet cfg, a run folder, a config (its run), the name of a public
            model (see `detector.zoo`), or None.
        weights: a weights or exported file; None = the model's own. With neither, the newest run in weights/, else
            the released weights that come with the project.
        names: file of class names, for a Darknet cfg.

    Raises:
        InputError: there is no such file.
    """
    model, weights = model and cfg_of(model), weights and weights_of(weights)
    if model is not None and Path(model).suffix == ".cfg":
        return _load_weights(model, weights, names)
    return load_any(_find_file(model, weights, detectors_only=True))


def find_trainable(model: str | None, weights: str | None = None, names: str | None = None) -> LoadedDetector:
    """Like `find_model`, for tasks that need the weights. Raises: InputError: no such file, or an exported one."""
    loaded = find_model(model, weights, names)
    if isinstance(loaded, LoadedExport):
        raise InputError(f"{loaded.path}: is an exported file; name the weights that it was made from")
    return cast("LoadedDetector", loaded)


def find_classifier(model: str | None, weights: str | None) -> Checkpoint | None:
    """The classifier that a user means, by the rules of `find_model`; None for anything else.

    Raises:
        InputError: a config's run holds no weights yet or another classifier, or a file is damaged.
    """
    path = _find_file(model, weights, detectors_only=False)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint.model, ClassifierConfig):
        return None
    if model is not None and _is_config(Path(model)) and load_run_config(model).model != checkpoint.model:
        raise InputError(f"{path}: holds a classifier other than that of {model}; give the weights alone")
    return checkpoint


def identity(loaded: Loaded) -> str:
    """A hash over everything that its detections depend on: weights, network, size, class names."""
    content = hashlib.sha256(loaded.path.read_bytes())
    if isinstance(loaded, LoadedExport):
        for suffix in FORMATS[format_of(loaded.path) or ""].beside:
            content.update(loaded.path.with_suffix(suffix).read_bytes())
    else:
        content.update(repr(cast("LoadedDetector", loaded).model).encode())
    content.update(repr((loaded.preprocess, loaded.class_names)).encode())
    return content.hexdigest()


def _find_file(model: str | None, weights: str | None, *, detectors_only: bool) -> Path:
    if weights is not None:
        return weights_of_run(Path(weights)) if Path(weights).is_dir() else Path(weights)
    if model is None:
        return find_weights([Path("weights"), PROJECT_ROOT / "weights"], detectors_only=detectors_only)
    path = Path(cfg_of(model))
    if _is_config(path):
        return weights_of_run(Path(load_run_config(path).run_dir or "."))
    return weights_of_run(path) if path.is_dir() else path


def _is_config(path: Path) -> bool:
    return path.suffix in {".yaml", ".yml"}


def weights_of_run(run_dir: Path) -> Path:
    for name in ("best.safetensors", "last.safetensors"):
        if (run_dir / name).is_file():
            return run_dir / name
    raise InputError(f"{run_dir}: holds no weights yet; train first, or give --weights FILE")
