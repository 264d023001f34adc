"""Finds and opens what a user means by a model: our weights, an exported file, a Darknet cfg, a run, a config."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from detector.checkpoint import Checkpoint, find_weights, load_checkpoint
from detector.config import (
    ClassifierConfig,
    DarknetModelConfig,
    DetectConfig,
    PreprocessConfig,
    load_run_config,
    parse_config_text,
)
from detector.darknet import load_darknet
from detector.darknet.names import find_names, read_names
from detector.errors import InputError
from detector.inference.build import DetectorModel, build_decoder, build_network, require_detector
from detector.postprocess import Decoder
from detector.runtime.formats import FORMATS, format_of, is_export
from detector.runtime.record import ExportRecord
from detector.zoo.table import cfg_of, weights_of

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
class LoadedDetector(Loaded):
    """Weights with their network.

    Attributes:
        network: in eval mode.
        model: its config section.
    """

    network: nn.Module
    model: DetectorModel

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX graph for one image, made once: it takes some seconds."""
        from detector.runtime.onnx_graph import to_onnx

        graph: bytes = to_onnx(self.network, self.preprocess.size_hw).SerializeToString()
        return graph


@dataclass(frozen=True)
class LoadedExport(Loaded):
    """A file written by tools/export.py. Attributes: record: what the file says about itself."""

    record: ExportRecord


def load_detector(
    model: str | Path, weights: str | Path | None = None, *, names: str | Path | None = None
) -> LoadedDetector:
    """Loads a detector from our weights file, or from a Darknet cfg and its weights.

    Args:
        model: .safetensors, or .cfg.
        weights: weights file of a .cfg; None = the .weights file of the same name beside it.
        names: file of class names of a .cfg; None = a *.names file of the right length beside it.

    Raises:
        InputError: a file is missing or damaged, or does not hold a detector.
    """
    path = Path(model)
    if path.suffix == ".cfg":
        return _load_darknet_detector(path, Path(weights or path.with_suffix(".weights")), names)
    checkpoint = load_checkpoint(path)
    if isinstance(checkpoint.model, ClassifierConfig):
        raise InputError(
            f"{path}: holds a classifier, not a detector; tools/eval.py measures it, and tools/train.py --weights "
            "starts a detector from its backbone"
        )
    loaded = _describe(path, build_network(checkpoint.model), checkpoint.model, checkpoint.preprocess, checkpoint.info)
    try:
        loaded.network.load_state_dict(checkpoint.weights())
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors do not fit its own config: {error}") from error
    return loaded


def _describe(
    path: Path, network: nn.Module, model: DetectorModel, preprocess: PreprocessConfig, info: dict[str, Any]
) -> LoadedDetector:
    return LoadedDetector(
        path=path,
        class_names=model.class_names,
        preprocess=preprocess,
        decoder=build_decoder(model, network),
        info=info,
        network=network.eval(),
        model=model,
    )


def _load_darknet_detector(cfg: Path, weights: Path, names: str | Path | None) -> LoadedDetector:
    network = load_darknet(cfg, weights, cpu_parity=False)
    if not network.yolo_sections:
        raise InputError(f"{cfg}: has no [yolo] section; it is a classifier, not a detector")
    num_classes = network.yolo_sections[0].num_classes
    class_names = read_names(Path(names)) if names is not None else find_names(cfg, num_classes)
    require_detector(network, len(class_names), str(cfg))
    _, height, width = network.size_chw
    preprocess = PreprocessConfig((height, width), bool(network.net.integer("letter_box", 0)), align_corners=True)
    return _describe(weights, network, DarknetModelConfig(network.cfg_text, class_names), preprocess, {})


def untrained_detector(config: DetectConfig, path: Path) -> LoadedDetector:
    """The untrained network of an experiment, for what needs no weights: measuring its speed and cost.

    Args:
        config: the experiment.
        path: its file, for messages.
    """
    return _describe(path, build_network(config.model), config.model, config.preprocess, {})


def load_export(path: Path) -> LoadedExport:
    """Opens an exported file with the record inside it. Raises: InputError: missing, damaged, or without one."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    record = ExportRecord.from_json(_record_text(path), str(path))
    return LoadedExport(path, record.class_names, record.preprocess, record.decoder, record.info, record)


def _record_text(path: Path) -> str:
    name = format_of(path)
    if name == "onnx":
        from detector.runtime import onnx_graph

        return onnx_graph.record_text(path)
    from detector.runtime import openvino_backend

    return openvino_backend.record_text(openvino_backend.read_model(path))


def load_any(model: str | Path) -> Loaded:
    """`load_detector` or `load_export`, by the suffix; or a public model by its name. Raises: InputError."""
    model = cfg_of(str(model))
    if Path(model).suffix in _RUNS_CODE:
        raise InputError(
            f"{model}: is not opened, since such a file can run any code; give .safetensors, .onnx, .xml or .cfg"
        )
    return load_export(Path(model)) if is_export(model) else load_detector(model)


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
        return load_detector(model, weights, names=names)
    return load_any(_find_file(model, weights, detectors_only=True))


def find_trainable(model: str | None, weights: str | None = None, names: str | None = None) -> LoadedDetector:
    """Like `find_model`, for tasks that need the weights. Raises: InputError: no such file, or an exported one."""
    loaded = find_model(model, weights, names)
    if not isinstance(loaded, LoadedDetector):
        raise InputError(f"{loaded.path}: is an exported file; name the weights that it was made from")
    return loaded


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
    if isinstance(loaded, LoadedDetector):
        content.update(repr(loaded.model).encode())
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
