"""Finds and opens what a user means by a model: our weights, a Darknet cfg, an exported file, a run, a config."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from detector.build import AnyModel, build_decoder, build_network, require_detector
from detector.checkpoint import Checkpoint, find_weights, load_checkpoint
from detector.config import (
    ClassifierConfig,
    ClassifyConfig,
    DarknetModelConfig,
    ExperimentConfig,
    PreprocessConfig,
    load_config,
    load_run_config,
)
from detector.darknet import load_darknet
from detector.darknet.names import find_names, read_names
from detector.errors import InputError
from detector.postprocess import Decoder
from detector.runtime.record import ExportRecord

PROJECT_ROOT = Path(__file__).resolve().parents[1]
EXPORTED = (".onnx", ".xml", ".torchscript")


@dataclass(frozen=True)
class LoadedDetector:
    """A network with all that it takes to use it.

    Attributes:
        path: the file that the weights came from.
        network: in eval mode.
        model: its config section.
        preprocess: how images become its input.
        info: what else the file says: step, metrics, config text; empty for Darknet files.
    """

    path: Path
    network: nn.Module
    model: AnyModel
    preprocess: PreprocessConfig
    info: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the class indices."""
        return self.model.class_names

    @property
    def decoder(self) -> Decoder:
        """How to read the raw maps."""
        return build_decoder(self.model, self.network)

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX graph for one picture, made once: it takes some seconds."""
        from detector.runtime.onnx_graph import to_onnx

        graph: bytes = to_onnx(self.network, self.preprocess.size_hw).SerializeToString()
        return graph


@dataclass(frozen=True)
class LoadedExport:
    """A file of tools/export.py.

    Attributes:
        path: of the file.
        record: what it says about itself.
    """

    path: Path
    record: ExportRecord

    @property
    def info(self) -> dict[str, Any]:
        """What the weights file that it came from said: step, metrics, config text."""
        return self.record.info

    @property
    def preprocess(self) -> PreprocessConfig:
        """How images become its input."""
        return self.record.preprocess

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the class indices."""
        return self.record.class_names

    @property
    def decoder(self) -> Decoder:
        """How to read the raw maps."""
        return self.record.decoder


Loaded = LoadedDetector | LoadedExport


def load_detector(
    model: str | Path, weights: str | Path | None = None, *, names: str | Path | None = None
) -> LoadedDetector:
    """Loads a detector from our weights file, or from a Darknet cfg and its weights.

    Args:
        model: .safetensors, or .cfg.
        weights: of a .cfg; None = the .weights file of the same name beside it.
        names: file of class names of a .cfg; None = a fitting *.names beside it.

    Raises:
        InputError: a file is missing, damaged, or no detector.
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
    network = build_network(checkpoint.model)
    try:
        network.load_state_dict(checkpoint.weights())
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors do not fit its own config: {error}") from error
    return LoadedDetector(path, network.eval(), checkpoint.model, checkpoint.preprocess, checkpoint.info)


def _load_darknet_detector(cfg: Path, weights: Path, names: str | Path | None) -> LoadedDetector:
    network = load_darknet(cfg, weights, cpu_parity=False)
    if not network.yolo_sections:
        raise InputError(f"{cfg}: has no [yolo] section; it is a classifier, not a detector")
    num_classes = network.yolo_sections[0].num_classes
    class_names = read_names(Path(names)) if names is not None else find_names(cfg, num_classes)
    require_detector(network, len(class_names), str(cfg))
    _, height, width = network.size_chw
    model = DarknetModelConfig(network.cfg_text, class_names)
    preprocess = PreprocessConfig((height, width), bool(network.net.integer("letter_box", 0)), align_corners=True)
    return LoadedDetector(weights, network, model, preprocess, {})


def load_export(path: Path) -> LoadedExport:
    """Opens an exported file with the record that is inside. Raises: InputError: missing, damaged, or none of ours."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return LoadedExport(path, ExportRecord.from_json(_record_text(path), str(path)))


def _record_text(path: Path) -> str:
    if path.suffix == ".onnx":
        from detector.runtime import onnx_graph

        return onnx_graph.record_text(path)
    if path.suffix == ".xml":
        from detector.runtime import openvino_backend

        return openvino_backend.record_text(openvino_backend.read_model(path))
    from detector.runtime.torch_backend import load_script

    return load_script(path)[1]


def load_any(model: str | Path) -> Loaded:
    """`load_detector` or `load_export`, by the name's ending. Raises: InputError."""
    return load_export(Path(model)) if Path(model).suffix in EXPORTED else load_detector(model)


def identity(loaded: Loaded) -> str:
    """A hash over all that its detections depend on: weights, network, size, class names."""
    content = hashlib.sha256(loaded.path.read_bytes())
    if loaded.path.suffix == ".xml":
        content.update(loaded.path.with_suffix(".bin").read_bytes())
    if isinstance(loaded, LoadedDetector):
        content.update(repr(loaded.model).encode())
    content.update(repr((loaded.preprocess, loaded.class_names)).encode())
    return content.hexdigest()


def fresh_detector(config: ExperimentConfig, path: Path) -> LoadedDetector:
    """The network of an experiment, untrained, for what needs no weights: how fast it is, what it costs.

    Args:
        config: the experiment.
        path: its file, for messages.
    """
    return LoadedDetector(path, build_network(config.model).eval(), config.model, config.preprocess, {})


def find_model(model: str | None, weights: str | None, names: str | None = None) -> Loaded:
    """The detector that a user means.

    Args:
        model: a weights file, an exported file, a Darknet cfg, a run folder, a config (whose run is meant), or None.
        weights: a weights or exported file; None = the model's own. With neither, the newest run in weights/, else
            the released weights that come with the project.
        names: file of class names, for a Darknet cfg.

    Raises:
        InputError: there is no such file.
    """
    if model is not None and Path(model).suffix == ".cfg":
        return load_detector(model, weights, names=names)
    if weights is not None:
        return load_any(weights)
    if model is None:
        return load_detector(find_weights([Path("weights"), PROJECT_ROOT / "weights"]))
    if Path(model).is_dir():
        return load_detector(_of_run(Path(model)))
    if Path(model).suffix in {".yaml", ".yml"}:
        return load_detector(_of_run(Path(load_config(model).run_dir or ".")))
    return load_any(model)


def find_weights_of(model: str | None, weights: str | None = None, names: str | None = None) -> LoadedDetector:
    """As `find_model`, for what only weights can do. Raises: InputError: no such file, or an exported one."""
    loaded = find_model(model, weights, names)
    if isinstance(loaded, LoadedExport):
        raise InputError(f"{loaded.path}: is an exported file; name the weights that it was made of")
    return loaded


def find_classifier(model: str | None, weights: str | None) -> Checkpoint | None:
    """The classifier that a user means, by the rules of `find_model`; None where it is anything else.

    Raises:
        InputError: a config's run holds no weights yet, or a file is damaged.
    """
    if weights is None and model is None:
        path = find_weights([Path("weights"), PROJECT_ROOT / "weights"], detectors_only=False)
    else:
        path = Path(weights or model or ".")
    if weights is None and path.suffix in {".yaml", ".yml"}:
        config = load_run_config(path)
        if not isinstance(config, ClassifyConfig):
            return None
        path = _of_run(Path(config.run_dir or "."))
    elif weights is None and model is not None and path.is_dir():
        path = _of_run(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint.model, ClassifierConfig):
        return None
    if model is not None and Path(model).suffix in {".yaml", ".yml"}:
        config = load_run_config(model)
        if config.model != checkpoint.model:
            raise InputError(f"{path}: holds a classifier, which is not that of {model}; give the weights alone")
    return checkpoint


def _of_run(run_dir: Path) -> Path:
    for name in ("best.safetensors", "last.safetensors"):
        if (run_dir / name).is_file():
            return run_dir / name
    raise InputError(f"{run_dir}: holds no weights yet; train first, or give --weights FILE")
